//! Places in a text, for people.

use super::file::Place;

/// A text that knows where its lines begin.
#[derive(Debug)]
pub(super) struct Text<'t> {
    text: &'t str,
    /// Byte offsets of the first character of each line; never empty.
    line_starts: Vec<usize>,
}

impl<'t> Text<'t> {
    /// Looks for the lines.
    pub(super) fn new(text: &'t str) -> Self {
        // A byte order mark is no character that an editor shows.
        let first = if text.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        let line_starts = std::iter::once(first)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { text, line_starts }
    }

    /// The place after the last character.
    pub(super) fn end(&self) -> Place {
        Place(self.text.len())
    }

    /// Line and column of a place, both from 1, the column in characters. Places beyond the end are at the end.
    pub(super) fn position(&self, place: Place) -> (u32, u32) {
        let offset = self.text.floor_char_boundary_before(place.0);
        let line = self
            .line_starts
            .partition_point(|start| *start <= offset)
            .max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self
            .text
            .get(start..offset)
            .map_or(0, |before| before.chars().count())
            + 1;
        (
            u32::try_from(line).unwrap_or(u32::MAX),
            u32::try_from(column).unwrap_or(u32::MAX),
        )
    }
}

/// `str::floor_char_boundary` is newer than the oldest compiler supported.
trait FloorCharBoundary {
    /// The last character boundary at or before `offset`.
    fn floor_char_boundary_before(&self, offset: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_before(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.len());
        while !self.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let text = Text::new("ab\ncé = 1\r\n\n");
        let at = |offset| text.position(Place(offset));
        assert_eq!(at(0), (1, 1));
        assert_eq!(at(2), (1, 3));
        assert_eq!(at(3), (2, 1));
        assert_eq!(at(6), (2, 3), "columns are characters, not bytes");
        assert_eq!(at(5), (2, 2), "the middle of a character is its beginning");
        assert_eq!(at(12), (3, 1));
        assert_eq!(at(13), (4, 1));
        assert_eq!(at(1000), (4, 1));
        assert_eq!(Text::new("").position(Place(0)), (1, 1));
        assert_eq!(Text::new("\u{feff}a").position(Place(3)), (1, 1));
    }
}
