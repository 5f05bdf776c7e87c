//! Why a command was not carried out.

/// A command that changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// What kind of refusal.
    pub kind: RefusedKind,
    /// What failed and why.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedKind {
    /// The request itself makes no sense.
    Invalid,
    /// It names something that does not exist.
    Unknown,
    /// The state of things forbids it.
    Conflict,
    /// ebb itself could not do it.
    Failed,
}

impl Refused {
    /// A refusal without a hint.
    pub fn new(kind: RefusedKind, error: impl Into<String>) -> Self {
        Self {
            kind,
            error: error.into(),
            hint: None,
        }
    }

    /// The request makes no sense.
    pub fn invalid(error: impl Into<String>) -> Self {
        Self::new(RefusedKind::Invalid, error)
    }

    /// No such thing.
    pub fn unknown(error: impl Into<String>) -> Self {
        Self::new(RefusedKind::Unknown, error)
    }

    /// The state forbids it.
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(RefusedKind::Conflict, error)
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An unknown name, with the nearest known one as the hint.
    pub fn unknown_name<'a>(
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let nearest = known
            .iter()
            .map(|candidate| (distance(name, candidate), *candidate))
            .min()
            .filter(|(distance, candidate)| *distance <= candidate.chars().count().div_ceil(2));
        let refusal = Self::unknown(format!("no {what} {name:?}"));
        match nearest {
            Some((_, candidate)) => refusal.hint(format!("did you mean {candidate}?")),
            None if known.is_empty() => refusal.hint(format!("there is no {what} at all")),
            None => {
                let shown: Vec<_> = known.iter().take(8).copied().collect();
                refusal.hint(format!("known: {}", shown.join(", ")))
            }
        }
    }
}

/// Edit distance (Levenshtein, 1965).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered() {
        let refusal = Refused::unknown_name("service", "wbe", ["web", "mail"]);
        assert_eq!(refusal.error, "no service \"wbe\"");
        assert_eq!(refusal.hint.as_deref(), Some("did you mean web?"));
    }

    #[test]
    fn far_names_are_listed_instead() {
        let refusal = Refused::unknown_name("service", "zzzzzz", ["web", "mail"]);
        assert_eq!(refusal.hint.as_deref(), Some("known: web, mail"));
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "ab"), 2);
    }
}
