//! Where marks stand in text that is still being written.

/// Does more text follow?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::codec) enum End {
    /// It may.
    No,
    /// The model has said all.
    Stopped,
    /// It was cut off.
    Cut,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The mark `which` stands at `start`.
    At {
        /// Its first byte.
        start: usize,
        /// Its place among the marks.
        which: usize,
    },
    /// No mark stands there yet; what lies beyond `certain` bytes may become one.
    Not {
        /// Bytes that belong to no mark.
        certain: usize,
    },
}

/// The first of `marks` in `text`; of two at one place the longer, if `text` already tells.
pub(super) fn find(text: &str, marks: &[&str]) -> Found {
    let found = marks.iter().enumerate().filter_map(|(which, mark)| text.find(mark).map(|start| (start, which)));
    let first = found.min_by_key(|(start, which)| (*start, usize::MAX - marks[*which].len()));
    let held = marks.iter().map(|mark| possible_len(text, mark)).max().unwrap_or(0);
    match first {
        Some((start, which)) => Found::At { start, which },
        None => Found::Not { certain: text.len() - held },
    }
}

/// Length of the longest end of `text` with which `mark` begins but does not end.
pub(in crate::codec) fn possible_len(text: &str, mark: &str) -> usize {
    let max = text.len().min(mark.len().saturating_sub(1));
    (1..=max).rev().find(|len| mark.is_char_boundary(*len) && text.ends_with(&mark[..*len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_is_found_and_what_may_become_one_is_uncertain() {
        assert_eq!(find("a</think>b<tool>", &["<tool>", "</think>"]), Found::At { start: 1, which: 1 });
        assert_eq!(find("abc</th", &["<tool>", "</think>"]), Found::Not { certain: 3 });
        assert_eq!(find("abc", &["<tool>"]), Found::Not { certain: 3 });
        assert_eq!(find("", &["<tool>"]), Found::Not { certain: 0 });
    }
}
