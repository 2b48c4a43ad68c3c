//! One file from the hub: in parts, several at a time, checked, and under its name only when it is whole.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::StatusCode;
use reqwest::Response;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::REQUESTS_AT_ONCE;
use super::api::{Api, Failed, RemoteFile, Wait, text};
use super::parts::{PART_LEN, PartFile, bytes_here, part_len};
use crate::cache::CachedRepo;
use crate::disk::{self, blocking};
use crate::error::FetchError;
use crate::progress::Meter;

/// How much is gathered before it is written.
const WRITE_LEN: usize = 1 << 20;

/// Bytes of a blob that still have to come.
pub(super) fn bytes_missing(blob: &Path, size: u64) -> u64 {
    if is_here(blob, size) { 0 } else { size - bytes_here(blob, size) }
}

fn is_here(blob: &Path, size: u64) -> bool {
    fs::metadata(blob).is_ok_and(|meta| meta.len() == size)
}

/// The fetch of one file.
#[derive(Clone, Copy)]
pub(super) struct BlobFetch<'a> {
    pub(super) api: &'a Api<'a>,
    pub(super) repo: &'a CachedRepo,
    pub(super) commit: &'a str,
    pub(super) file: &'a RemoteFile,
    /// Requests that may run at a time.
    pub(super) requests: &'a Semaphore,
    pub(super) meter: &'a Meter<'a>,
}

impl BlobFetch<'_> {
    /// Brings the blob into the cache. Waits while another process brings it.
    pub(super) async fn run(self) -> Result<(), FetchError> {
        let (size, etag) = (self.file.size, self.file.etag.as_str());
        let blob = self.repo.blob(etag);
        let lock = Arc::new(disk::lock(&self.repo.lock(etag)).await?);
        if is_here(&blob, size) {
            self.meter.is_here(size);
            return Ok(());
        }
        loop {
            let (path, open_size, lock) = (blob.clone(), size, Arc::clone(&lock));
            let (parts_file, parts) = blocking(move || PartFile::open(&path, open_size, lock)).await?;
            let resumed: u64 = parts.iter().sum();
            self.meter.is_here(resumed);
            self.all_parts(&parts_file, parts).await?;
            let (checked, etag) = (parts_file.clone(), self.file.etag.clone());
            match blocking(move || etag.check(checked.file(), open_size)).await? {
                Ok(()) => {
                    let path = blob.clone();
                    return blocking(move || parts_file.finish(&path)).await;
                }
                Err(problem) => {
                    blocking(move || {
                        parts_file.discard();
                        Ok(())
                    })
                    .await?;
                    self.meter.take_back(size);
                    if resumed == 0 {
                        return Err(FetchError::Corrupted { file: self.file.name.clone(), problem });
                    }
                    warn!(file = %self.file.name, problem, "what was left of an earlier download is damaged; it begins anew");
                }
            }
        }
    }

    async fn all_parts(self, parts_file: &PartFile, parts: Vec<u64>) -> Result<(), FetchError> {
        let size = self.file.size;
        let open = (0..).zip(parts).filter(|(part, done)| *done < part_len(size, *part));
        let parts: Vec<_> = open.map(|(part, done)| self.part(parts_file, part, done)).collect();
        stream::iter(parts).buffer_unordered(REQUESTS_AT_ONCE).try_collect().await
    }

    /// Fetches a part, from the `done` bytes on that are here. Goes on after an interruption for as long as there is hope.
    async fn part(self, parts_file: &PartFile, part: u64, mut done: u64) -> Result<(), FetchError> {
        let mut silent_since: Option<Instant> = None;
        let mut wait = Wait::new();
        loop {
            let permit = self.requests.acquire().await.expect("the semaphore is never closed");
            let before = done;
            match self.stretch(parts_file, part, &mut done).await {
                Ok(()) => return Ok(()),
                Err(Failed::Forever(error)) => return Err(error),
                Err(Failed::Now(error)) => {
                    if done > before {
                        (silent_since, wait) = (None, Wait::new());
                    }
                    if silent_since.get_or_insert_with(Instant::now).elapsed() >= self.api.patience {
                        return Err(error);
                    }
                    debug!(file = %self.file.name, part, done, %error, "a download was interrupted");
                    self.api.tries.on_failure(&self.api.address(self.commit, &self.file.name), &error, wait.next(), Instant::now());
                }
            }
            drop(permit);
            wait.wait().await;
        }
    }

    /// One request, and what comes of it.
    async fn stretch(self, parts_file: &PartFile, part: u64, done: &mut u64) -> Result<(), Failed> {
        let size = self.file.size;
        let (start, len) = (part * PART_LEN, part_len(size, part));
        let response = self.api.range(self.commit, &self.file.name, start + *done, start + len - 1).await?;
        self.check_answer(&response, start + *done, len - *done).map_err(Failed::Forever)?;
        if response.status() == StatusCode::OK && *done > 0 {
            self.meter.take_back(*done); // a mirror without ranges: the whole file again
            *done = 0;
        }
        let ended = |done| Failed::Now(FetchError::Truncated { file: self.file.name.clone(), got: start + done, size });
        let url = self.api.address(self.commit, &self.file.name);
        let mut stream = response.bytes_stream();
        let (mut gathered, mut n_gathered) = (Vec::<Bytes>::new(), 0);
        loop {
            let next = self.api.patiently(&url, stream.next()).await;
            let over = !matches!(next, Some(Ok(_)));
            if let Some(Ok(bytes)) = next {
                let left = (len - *done) as usize - n_gathered;
                n_gathered += bytes.len().min(left);
                gathered.push(if bytes.len() > left { bytes.slice(..left) } else { bytes });
            }
            let whole = *done + n_gathered as u64 == len;
            if n_gathered > 0 && (over || whole || n_gathered >= WRITE_LEN) {
                let (parts_file, gathered, from) = (parts_file.clone(), std::mem::take(&mut gathered), *done);
                *done = blocking(move || parts_file.write(part, from, &gathered)).await.map_err(Failed::Forever)?;
                self.meter.add(n_gathered as u64);
                self.api.tries.on_answer();
                n_gathered = 0;
            }
            if whole {
                return Ok(());
            }
            if over {
                return Err(ended(*done));
            }
        }
    }

    /// Is this the stretch that was asked for, of a file of the announced size?
    fn check_answer(&self, response: &Response, from: u64, len: u64) -> Result<(), FetchError> {
        let size = self.file.size;
        let wrong = |problem: String| FetchError::Answer { url: self.api.address(self.commit, &self.file.name), problem };
        let total = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range =
                    text(response.headers(), "content-range").ok_or_else(|| wrong("status 206 without Content-Range".to_owned()))?;
                let parsed = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
                let (stretch, total) = parsed.ok_or_else(|| wrong(format!("Content-Range {range:?}")))?;
                if !stretch.starts_with(&format!("{from}-")) {
                    return Err(wrong(format!("Content-Range {range:?} where {from} to {} was asked for", from + len - 1)));
                }
                total.parse().ok()
            }
            StatusCode::OK if size <= PART_LEN => response.content_length(),
            StatusCode::OK => return Err(wrong("it ignores ranges, which a file of this size needs".to_owned())),
            status => return Err(wrong(format!("status {status}"))),
        };
        match total {
            Some(total) if total < size => Err(FetchError::Truncated { file: self.file.name.clone(), got: total, size }),
            Some(total) if total > size => {
                let problem = format!("{total} bytes are offered where {size} were announced");
                Err(FetchError::Corrupted { file: self.file.name.clone(), problem })
            }
            _ => Ok(()),
        }
    }
}
