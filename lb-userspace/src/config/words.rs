//! Words in messages: quoting what the file says, and guessing what it meant.

/// Longest piece of the file that a message repeats, in characters.
const QUOTED_MAX_CHARS: usize = 80;

/// A piece of the file in backquotes, not longer than a message should repeat.
pub(super) fn quote(text: &str) -> String {
    format!("`{}`", shortened(text))
}

/// The beginning of a piece of the file, as much as a message should repeat.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Words in backquotes with commas between them.
pub(super) fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(quote).collect::<Vec<_>>().join(", ")
}

/// The candidate that `word` most likely stands for, if any is near enough.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().take(QUOTED_MAX_CHARS).collect();
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean X?` if a candidate is near, else the list of all of them after `otherwise`.
pub(super) fn did_you_mean(word: &str, candidates: &[&str], otherwise: &str) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(near) => format!("did you mean {}?", quote(near)),
        None => format!("{otherwise} {}", list(candidates.iter().copied())),
    }
}

/// Edit distance in which exchanging two neighbours counts once (optimal string alignment).
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (above[j] + 1)
                .min(row[j - 1] + 1)
                .min(above[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_words() {
        let keys = ["listen", "forward", "affinity", "drain", "slots"];
        for (typed, meant) in [
            ("lisen", Some("listen")),
            ("listne", Some("listen")),
            ("Forward", Some("forward")),
            ("slot", Some("slots")),
            ("train", Some("drain")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
    }

    #[test]
    fn quoting_is_short() {
        assert_eq!(quote("é b"), "`é b`");
        assert_eq!(
            quote(&"é".repeat(1000)).chars().count(),
            QUOTED_MAX_CHARS + 3
        );
    }
}
