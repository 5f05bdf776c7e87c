//! The shape of the file: sections, their fields, the types of these, and where each of them is.
//!
//! A [`Section`] remembers which keys were asked of it, so the keys it does not know need no second list.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    problem::{Problems, Reported},
    words::{did_you_mean, list, quote, shortened},
};

/// Keys that stand before the first section; below one they are a common mistake with a hint of its own.
const ROOT_KEYS: [&str; 3] = ["interfaces", "xdp_mode", "hash_seed_file"];

/// Byte offset in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(pub(super) usize);

/// A value and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A table of the file.
#[derive(Debug)]
pub(super) struct Section<'d> {
    /// As a person would write it: `[service.web]`.
    title: String,
    /// Of the key that names it.
    pub(super) place: Place,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
    later: Vec<&'static str>,
}

impl<'d> Section<'d> {
    /// The file itself.
    pub(super) fn root(table: &'d DeTable<'d>) -> Self {
        Self::new("the file".to_owned(), Place(0), table)
    }

    fn new(title: String, place: Place, table: &'d DeTable<'d>) -> Self {
        Self {
            title,
            place,
            table,
            known: Vec::new(),
            later: Vec::new(),
        }
    }

    /// The field of that name, if it is there; from now on the key is known.
    pub(super) fn field(&mut self, key: &'static str) -> Option<Field<'d>> {
        self.known.push(key);
        self.table
            .get_key_value(key)
            .map(|(key, value)| Field::new(key.get_ref(), key.span().start, value))
    }

    /// Like [`Section::field`], but its absence is a problem.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        problems: &mut Problems<'_>,
        hint: impl Into<String>,
    ) -> Result<Field<'d>, Reported> {
        self.field(key).ok_or_else(|| {
            problems.report(
                self.place,
                format!("{} lacks {}", self.title, quote(key)),
                hint,
            )
        })
    }

    /// A key that has a meaning in the design and none in this version.
    pub(super) fn not_yet(&mut self, key: &'static str) {
        self.later.push(key);
    }

    /// All fields in the order of the file, for sections whose keys are names.
    pub(super) fn entries(&self) -> impl Iterator<Item = Field<'d>> + use<'d> {
        self.table
            .iter()
            .map(|(key, value)| Field::new(key.get_ref(), key.span().start, value))
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(&self, problems: &mut Problems<'_>) {
        for field in self
            .entries()
            .filter(|field| !self.known.contains(&field.key))
        {
            if self.later.contains(&field.key) {
                let message = format!("{} is not supported yet", quote(field.key));
                problems.report(field.key_place, message, "take the line out");
                continue;
            }
            let hint = if self.known.iter().all(|key| !ROOT_KEYS.contains(key))
                && ROOT_KEYS.contains(&field.key)
            {
                format!("{} goes before the first [section]", quote(field.key))
            } else {
                did_you_mean(field.key, &self.known, "known keys are")
            };
            problems.report(
                field.key_place,
                format!("unknown key {} in {}", quote(field.key), self.title),
                hint,
            );
        }
    }
}

/// A key, its value, and where they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'d> {
    /// The key, or for an element of a list the key of the list.
    pub(super) key: &'d str,
    /// Of the key.
    pub(super) key_place: Place,
    value: &'d Spanned<DeValue<'d>>,
}

impl<'d> Field<'d> {
    fn new(key: &'d str, key_start: usize, value: &'d Spanned<DeValue<'d>>) -> Self {
        Self {
            key,
            key_place: Place(key_start),
            value,
        }
    }

    /// Where the value is. Tables may be spread over the file; their place is their key, and so is that of
    /// `[[lists]]` of tables, which begin before it.
    pub(super) fn place(&self) -> Place {
        match self.value.get_ref() {
            DeValue::Table(_) => self.key_place,
            _ => self.key_place.max(Place(self.value.span().start)),
        }
    }

    /// Reports a problem of the value; `message` goes on after the key.
    pub(super) fn wrong(
        &self,
        problems: &mut Problems<'_>,
        message: impl Display,
        hint: impl Into<String>,
    ) -> Reported {
        problems.report(self.place(), format!("{} {message}", quote(self.key)), hint)
    }

    /// Reports a value of another type than `wanted`.
    pub(super) fn wrong_type(
        &self,
        problems: &mut Problems<'_>,
        wanted: &str,
        example: &str,
    ) -> Reported {
        let found = match self.value.get_ref().type_str() {
            "array" => "a list",
            "integer" => "an integer",
            "boolean" => "true or false",
            "string" => "a text",
            "float" => "a number with a fraction",
            "datetime" => "a date or time",
            _ => "a table",
        };
        self.wrong(
            problems,
            format_args!("must be {wanted}, not {found}"),
            format!("for example: {example}"),
        )
    }

    /// Whether the value is a text.
    pub(super) fn is_text(&self) -> bool {
        self.value.get_ref().is_str()
    }

    /// Whether the value is an integer.
    pub(super) fn is_integer(&self) -> bool {
        self.value.get_ref().is_integer()
    }

    /// Whether the value is a table.
    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// The value as a text.
    pub(super) fn text(
        &self,
        problems: &mut Problems<'_>,
        example: &str,
    ) -> Result<&'d str, Reported> {
        self.text_as(problems, "a text in quotes", &format!("\"{example}\""))
    }

    fn text_as(
        &self,
        problems: &mut Problems<'_>,
        wanted: &str,
        example: &str,
    ) -> Result<&'d str, Reported> {
        match self.value.get_ref() {
            DeValue::String(text) => Ok(text),
            _ => Err(self.wrong_type(problems, wanted, &format!("{} = {example}", self.key))),
        }
    }

    /// The value, an element of a list, as a text; `example` is a whole list.
    pub(super) fn element_text(
        &self,
        problems: &mut Problems<'_>,
        example: &str,
    ) -> Result<&'d str, Reported> {
        self.text_as(problems, "a list of texts in quotes", example)
    }

    /// The value as `true` or `false`.
    pub(super) fn boolean(&self, problems: &mut Problems<'_>) -> Result<bool, Reported> {
        let example = format!("{} = true", self.key);
        self.value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.wrong_type(problems, "true or false", &example))
    }

    /// The value as an integer in `range`.
    pub(super) fn integer(
        &self,
        problems: &mut Problems<'_>,
        range: RangeInclusive<u32>,
    ) -> Result<u32, Reported> {
        let DeValue::Integer(integer) = self.value.get_ref() else {
            return Err(self.wrong_type(
                problems,
                "an integer",
                &format!("{} = {}", self.key, range.start()),
            ));
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        number
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let limits = format!("use an integer from {} to {}", range.start(), range.end());
                self.wrong(
                    problems,
                    format_args!("is out of range: {}", quote(&integer.to_string())),
                    limits,
                )
            })
    }

    /// The value as one of some words; `later` are words of the design that this version does not know.
    pub(super) fn choice<T: Copy>(
        &self,
        problems: &mut Problems<'_>,
        choices: &[(&'static str, T)],
        later: &[&str],
    ) -> Result<T, Reported> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let text = self.text(problems, words.first().copied().unwrap_or_default())?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        if later.contains(&text) {
            let hint = format!("choices today are {}", list(words));
            return Err(self.wrong(
                problems,
                format_args!("= {} is not supported yet", quote(text)),
                hint,
            ));
        }
        let hint = did_you_mean(text, &words, "choices are");
        Err(self.wrong(problems, format_args!("cannot be {}", quote(text)), hint))
    }

    /// The value as a duration of whole milliseconds in `range`.
    pub(super) fn duration(
        &self,
        problems: &mut Problems<'_>,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, Reported> {
        const UNITS: &str = "write a number and a unit, such as \"500ms\", \"30s\" or \"5m\"";
        let text = self.text(problems, "30s")?;
        let duration = humantime::parse_duration(text).map_err(|error| {
            self.wrong(
                problems,
                format_args!("= {} is not a duration: {error}", quote(text)),
                UNITS,
            )
        })?;
        let limits = || {
            let [least, most] =
                [range.start(), range.end()].map(|end| humantime::format_duration(*end));
            format!("use a duration from {least} to {most}")
        };
        if !range.contains(&duration) {
            let than = if duration < *range.start() {
                "short"
            } else {
                "long"
            };
            return Err(self.wrong(
                problems,
                format_args!("= {} is too {than}", quote(text)),
                limits(),
            ));
        }
        if duration.subsec_nanos() % 1_000_000 != 0 {
            let message =
                format_args!("= {} is not a whole number of milliseconds", quote(text)).to_string();
            return Err(self.wrong(problems, message, "round it"));
        }
        Ok(duration)
    }

    /// The value as a section whose title is `title` in brackets.
    pub(super) fn section(
        &self,
        problems: &mut Problems<'_>,
        title: &str,
    ) -> Result<Section<'d>, Reported> {
        match self.value.get_ref() {
            DeValue::Table(table) => Ok(Section::new(
                format!("[{}]", shortened(title)),
                self.key_place,
                table,
            )),
            _ => Err(self.wrong_type(problems, "a table", &format!("[{title}]"))),
        }
    }

    /// The value as a list.
    pub(super) fn list(
        &self,
        problems: &mut Problems<'_>,
        example: &str,
    ) -> Result<Vec<Field<'d>>, Reported> {
        match self.value.get_ref() {
            DeValue::Array(elements) => Ok(elements
                .iter()
                .map(|value| Field::new(self.key, self.key_place.0, value))
                .collect()),
            _ => Err(self.wrong_type(problems, "a list", &format!("{} = {example}", self.key))),
        }
    }
}
