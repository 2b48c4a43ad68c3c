use plexus_types::{Role, Tool, ToolCall};
use proptest::prelude::*;

use super::*;

fn text(len: usize) -> String {
    (0..len).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect()
}

fn digests(prompt: &Prompt) -> Vec<u32> {
    PromptDigests::of(prompt).digests().to_vec()
}

fn of_text(text: &str) -> Vec<u32> {
    digests(&Prompt::Text(text.to_owned()))
}

fn chat(messages: &[(Role, String)]) -> Chat {
    Chat { messages: messages.iter().map(|(role, content)| Message::text(*role, content)).collect(), ..Chat::default() }
}

fn sorted(digests: &[u32]) -> Vec<u32> {
    let mut sorted = digests.to_vec();
    sorted.sort_unstable();
    sorted
}

/// Digests of two prompts that are the same from the start on.
fn in_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn the_places_are_close_at_first_and_then_eight_to_each_octave() {
    let all: Vec<u64> = places().take_while(|place| *place <= 512 << 10).collect();
    assert_eq!(all[..9], [512, 1024, 1536, 2048, 2560, 3072, 3584, 4096, 4608]);
    assert_eq!((all.len(), all.last()), (64, Some(&(512 << 10))));
    for octave in [4096u64, 8192, 65536, 262_144] {
        assert_eq!(all.iter().filter(|place| (octave..2 * octave).contains(place)).count(), 8);
    }
}

#[test]
fn the_digests_are_the_same_in_every_build() {
    assert_eq!(of_text(&text(2000)), [4_091_649_741, 1_540_838_463, 891_788_945]);
    assert_eq!(digests(&Prompt::Tokens((0..300).collect())), [2_635_271_001, 4_060_072_919]);
    assert_eq!(digests(&Prompt::Chat(chat(&[(Role::System, text(600)), (Role::User, text(600))]))), [4_201_548_391, 834_152_040]);
}

#[test]
fn whatever_a_template_reads_counts() {
    let plain = chat(&[(Role::User, text(600))]);
    let with = |change: &dyn Fn(&mut Chat)| {
        let mut other = plain.clone();
        change(&mut other);
        digests(&Prompt::Chat(other))
    };
    let tool = |description: Option<&str>| Tool { name: "f".into(), description: description.map(Into::into), parameters: None };
    let call = ToolCall { id: "1".into(), name: "f".into(), arguments: "{}".into() };
    let all = [
        with(&|_| {}),
        with(&|chat| chat.messages[0].role = Role::System),
        with(&|chat| chat.messages[0].name = Some(String::new())),
        with(&|chat| chat.messages[0].reasoning = Some("r".into())),
        with(&|chat| chat.messages[0].tool_call_id = Some("r".into())),
        with(&|chat| chat.messages.insert(0, Message { tool_calls: vec![call.clone()], ..Message::text(Role::Assistant, "") })),
        with(&|chat| chat.tools.push(tool(None))),
        with(&|chat| chat.tools.push(tool(Some("")))),
        with(&|chat| drop(chat.template_kwargs.insert("enable_thinking".into(), "false".into()))),
        digests(&Prompt::Text(text(600))),
    ];
    let first: std::collections::BTreeSet<u32> = all.iter().map(|digests| digests[0]).collect();
    assert_eq!(first.len(), all.len(), "{all:?}");
}

#[test]
fn what_is_held_is_estimated_by_the_longest_digest_in_common() {
    let prompt = PromptDigests::of(&Prompt::Text(text(4000)));
    let all = prompt.digests().to_vec();
    assert_eq!((all.len(), prompt.n_tokens()), (7, 1000));
    assert_eq!((prompt.n_cached(&[]), prompt.n_cached(&[1, 2, 3])), (0, 0));
    assert_eq!(prompt.n_cached(&sorted(&all[..3])), 3 * 512 / 4);
    assert_eq!(prompt.n_cached(&sorted(&all)), 7 * 512 / 4);
    assert_eq!(PromptDigests::of_length(4000).n_cached(&sorted(&all)), 0);
    let positions = prompt.positions(500);
    assert_eq!((positions[0], positions.len()), ((all[0], 63), 7), "512 bytes of 4002 are 63 tokens of 500");
}

proptest! {
    #[test]
    fn texts_that_begin_alike_share_the_digests_so_far_and_none_beyond(
        common in 0usize..20_000, a in 1usize..20_000, b in 1usize..20_000,
    ) {
        let head = text(common);
        let (one, other) = (of_text(&format!("{head}x{}", text(a))), of_text(&format!("{head}y{}", text(b))));
        let inside = places().take_while(|place| *place <= common as u64 + 2).count();
        prop_assert_eq!(in_common(&one, &other), inside);
        let (one, other) = (sorted(&one[inside..]), &other[inside..]);
        prop_assert!(other.iter().all(|digest| one.binary_search(digest).is_err()));
    }

    #[test]
    fn a_conversation_that_goes_on_keeps_its_digests(turns in prop::collection::vec(0usize..3000, 1..8), more in 0usize..3000) {
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        let mut messages: Vec<(Role, String)> = roles.zip(turns.iter().map(|len| text(*len))).collect();
        let before = digests(&Prompt::Chat(chat(&messages)));
        messages.push((Role::User, text(more)));
        let after = PromptDigests::of(&Prompt::Chat(chat(&messages)));
        prop_assert_eq!(in_common(&before, after.digests()), before.len());
        prop_assert!(after.n_cached(&sorted(&before)) <= after.n_tokens());
        prop_assert_eq!(after.n_cached(&sorted(&before)) > 0, !before.is_empty());
    }

    #[test]
    fn the_digests_do_not_depend_on_how_the_text_is_cut(len in 0usize..9000, cuts in prop::collection::vec(0usize..9000, 0..5)) {
        let whole = text(len);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).collect();
        cuts.sort_unstable();
        let mut stream = Stream::new();
        stream.put(&[FIELD, b't']);
        let mut from = 0;
        for cut in cuts.into_iter().chain([len]) {
            stream.put(&whole.as_bytes()[from..cut]);
            from = cut;
        }
        prop_assert_eq!(stream.digests, of_text(&whole));
    }

    #[test]
    fn positions_grow_and_stay_inside_the_prompt(len in 0usize..100_000, n_tokens in 0u32..100_000) {
        let positions = PromptDigests::of(&Prompt::Text(text(len))).positions(n_tokens);
        prop_assert!(positions.windows(2).all(|pair| pair[0].1 <= pair[1].1) && positions.iter().all(|(_, position)| *position <= n_tokens));
    }
}
