//! The official Python clients of both vendors against a real node. Skipped, with the reason, where they cannot be installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use plexus_tests::{Home, binary};

/// The clients' versions, pinned.
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/requirements.txt");

/// Python with the clients installed; made once and kept in the user's cache, made again when the pins change.
fn python() -> Result<&'static Path, &'static str> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(install).as_deref().map_err(String::as_str)
}

fn install() -> Result<PathBuf, String> {
    let cache = PathBuf::from(std::env::var_os("HOME").ok_or("no HOME")?).join(".cache/plexus/venv");
    let python = cache.join("bin/python");
    let installed = cache.join("requirements.txt");
    let wanted = std::fs::read_to_string(REQUIREMENTS).expect("the pins are in the repository");
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&cache))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]))?;
    std::fs::write(&installed, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(output) } else { Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))) }
}

async fn check(script: &str) {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("SKIPPED: the Python clients cannot be installed: {reason}");
            return;
        }
    };
    let bert = format!("bert=file:{}", binary::repository().join("engine/tests/golden/bert").display());
    let node = Home::new().node("n1").arg("--model", "pip=embedded:pip").arg("--model", &bert).start().await;
    node.offers("pip").await;
    node.offers("bert").await;
    let script = binary::repository().join("tests/sdk").join(script);
    let mut command = Command::new(python);
    command.arg("-B").arg(&script).env("PLEXUS_URL", node.client().base());
    for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name);
    }
    let output = tokio::process::Command::from(command).output().await.expect("python was just found");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    eprintln!("{text}");
    assert!(output.status.success(), "{}:\n{text}", script.display());
}

#[tokio::test]
async fn openai_s_client_is_served() {
    check("test_openai.py").await;
}

#[tokio::test]
async fn openai_s_client_gets_formats_tools_choices_and_vectors() {
    check("test_openai_formats.py").await;
}

#[tokio::test]
async fn anthropic_s_client_is_served() {
    check("test_anthropic.py").await;
}

#[tokio::test]
async fn anthropic_s_client_gets_tools_thoughts_and_formats() {
    check("test_anthropic_formats.py").await;
}
