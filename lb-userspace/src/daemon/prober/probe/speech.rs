//! Whether an HTTP answer asks for a drain.

use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Response, body::Incoming};

use crate::model::spec::HeaderSign;

/// Bytes of a body that are searched.
const BODY_BYTES: usize = 4096;

/// Whether the headers have the one that asks.
pub(super) fn has(headers: &HeaderMap, sign: &HeaderSign) -> bool {
    let mut values = headers.get_all(sign.name.as_str()).iter();
    values.any(|value| sign.means(value.as_bytes()))
}

/// Whether the first [`BODY_BYTES`] of the body contain `text`. Ends as soon as that is known.
pub(super) async fn contains(response: Response<Incoming>, text: &[u8]) -> bool {
    let mut body = response.into_body();
    let mut seen = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else {
            continue;
        };
        let room = BODY_BYTES - seen.len();
        seen.extend_from_slice(&data[..data.len().min(room)]);
        if seen.windows(text.len()).any(|part| part == text) {
            return true;
        }
        if seen.len() >= BODY_BYTES {
            return false;
        }
    }
    false
}
