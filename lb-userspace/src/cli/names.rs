//! How services, pools, backends, weights, addresses, interfaces and durations are written on the command line.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use crate::model::command::WEIGHT_MAX;

/// Longest name of a service, pool or backend, in characters.
const NAME_MAX_CHARS: usize = 63;

/// Longest name of an interface, in bytes (IFNAMSIZ with its closing zero is 16).
const INTERFACE_MAX_BYTES: usize = 15;

/// Why a name is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

/// Checks one name of a service, pool or backend.
fn name(kind: &str, text: &str) -> Result<String, NameError> {
    let odd = text
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(*c));
    let wrong = if text.is_empty() {
        "is empty".to_owned()
    } else if let Some(odd) = odd {
        format!("contains {odd:?} (letters, digits, `-`, `_` and `.` are possible)")
    } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        "begins with neither a letter nor a digit".to_owned()
    } else if text.len() > NAME_MAX_CHARS {
        format!("is longer than {NAME_MAX_CHARS} characters")
    } else {
        return Ok(text.to_owned());
    };
    Err(NameError(format!("the {kind}'s name {wrong}")))
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service(pub String);

impl FromStr for Service {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((service, _)) => Err(NameError(format!(
                "a service is wanted here, not a part of one; perhaps {service:?}"
            ))),
            None => name("service", text).map(Self),
        }
    }
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool(pub String);

impl FromStr for Pool {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.rsplit_once('/') {
            Some((_, pool)) => Err(NameError(format!(
                "a pool's own name is wanted here; perhaps {pool:?}"
            ))),
            None => name("pool", text).map(Self),
        }
    }
}

/// `SERVICE/BACKEND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Service.
    pub service: String,
    /// Backend.
    pub backend: String,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

impl FromStr for Backend {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [service, backend] => Ok(Self {
                service: name("service", service)?,
                backend: name("backend", backend)?,
            }),
            [service, _, backend] => Err(NameError(format!(
                "a backend's name is unique in its service: leave the pool out, as in \
                 {service}/{backend}"
            ))),
            _ => Err(NameError(
                "a backend is written SERVICE/BACKEND, as in web/b1".to_owned(),
            )),
        }
    }
}

/// `SERVICE/POOL/BACKEND`, for a backend that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackend {
    /// Service.
    pub service: String,
    /// Pool.
    pub pool: String,
    /// Backend.
    pub backend: String,
}

impl fmt::Display for NewBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.service, self.pool, self.backend)
    }
}

impl FromStr for NewBackend {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [service, pool, backend] => Ok(Self {
                service: name("service", service)?,
                pool: name("pool", pool)?,
                backend: name("backend", backend)?,
            }),
            _ => Err(NameError(
                "a new backend is written SERVICE/POOL/BACKEND, as in web/blue/b4".to_owned(),
            )),
        }
    }
}

/// `SERVICE` or `SERVICE/BACKEND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Service.
    pub service: String,
    /// Backend; all of the service when absent.
    pub backend: Option<String>,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        match &self.backend {
            Some(backend) => write!(f, "/{backend}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Scope {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains('/') {
            let Backend { service, backend } = text.parse()?;
            Ok(Self {
                service,
                backend: Some(backend),
            })
        } else {
            let service = name("service", text)?;
            Ok(Self {
                service,
                backend: None,
            })
        }
    }
}

/// Drains: the number of one, or those of a service or a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drains {
    /// A number.
    Id(u64),
    /// A service or a backend.
    Of(Scope),
}

impl fmt::Display for Drains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Of(scope) => scope.fmt(f),
        }
    }
}

impl FromStr for Drains {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => text.parse().map(Self::Of),
        }
    }
}

/// A weight; `None`: the one that a backend came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(pub Option<u32>);

impl FromStr for Weight {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "default" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(weight) if weight <= WEIGHT_MAX => Ok(Self(Some(weight))),
            _ => Err(NameError(format!(
                "a weight is 0 to {WEIGHT_MAX}, or `default`"
            ))),
        }
    }
}

/// Reads `ADDRESS:PORT`; the port is never 0.
///
/// # Errors
///
/// It is none; the text says how one is written.
pub fn address(text: &str) -> Result<SocketAddr, NameError> {
    let wrong = |why: String| Err(NameError(why));
    match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
        (Ok(address), _) if address.port() == 0 => wrong("port 0 is none".to_owned()),
        (Ok(address), _) => Ok(address),
        (_, Ok(IpAddr::V4(_))) => wrong(format!("the port is missing, as in {text}:8080")),
        (_, Ok(IpAddr::V6(_))) => wrong(format!("the port is missing, as in [{text}]:8080")),
        _ => wrong(
            "an address is written ADDRESS:PORT, as in 10.0.0.11:8080 or [2001:db8::11]:8080 \
             (no host names)"
                .to_owned(),
        ),
    }
}

/// Reads a backend's address: `ADDRESS:PORT`, or `ADDRESS` (port 0) where the service says the port.
///
/// # Errors
///
/// It is neither.
pub fn backend_address(text: &str) -> Result<SocketAddr, NameError> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, 0)),
        Err(_) => address(text),
    }
}

/// Reads a duration such as `300s`, `5m`, `1h 30m`.
///
/// # Errors
///
/// It is none, or longer than a year.
pub fn duration(text: &str) -> Result<Duration, NameError> {
    const YEAR: Duration = Duration::from_secs(365 * 86_400);
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NameError(format!(
            "its unit is missing, as in {text}s or {text}m"
        )));
    }
    match humantime::parse_duration(text) {
        Ok(value) if value > YEAR => Err(NameError("it is longer than a year".to_owned())),
        Ok(value) => Ok(value),
        Err(_) => Err(NameError(
            "a duration is written 300s, 5m or 1h30m".to_owned(),
        )),
    }
}

/// Checks an interface's name.
///
/// # Errors
///
/// The kernel would not take it.
pub fn interface(text: &str) -> Result<String, NameError> {
    let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let wrong = if text.is_empty() {
        "is empty".to_owned()
    } else if text.len() > INTERFACE_MAX_BYTES {
        format!("is longer than {INTERFACE_MAX_BYTES} bytes")
    } else if text == "." || text == ".." || text.contains(odd) {
        "is none that an interface can have".to_owned()
    } else {
        return Ok(text.to_owned());
    };
    Err(NameError(format!("the interface's name {wrong}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T: FromStr<Err = NameError> + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().expect_err(text).to_string()
    }

    #[test]
    fn backends() {
        let backend: Backend = "web/b-1.x".parse().expect("a name");
        assert_eq!(backend.to_string(), "web/b-1.x");
        let rows = [
            ("web", "SERVICE/BACKEND"),
            ("", "SERVICE/BACKEND"),
            ("a/b/c/d", "SERVICE/BACKEND"),
            ("web/blue/b1", "as in web/b1"),
            ("web/", "the backend's name is empty"),
            ("/b1", "the service's name is empty"),
            ("web/b 1", "contains ' '"),
            ("web/b\u{e9}", "contains 'é'"),
            ("web/..", "begins with neither"),
            ("web/-x", "begins with neither"),
        ];
        for (text, part) in rows {
            let said = said::<Backend>(text);
            assert!(said.contains(part), "{text:?}: {said}");
        }
        assert!(said::<Backend>(&format!("web/{}", "x".repeat(64))).contains("63"));
        assert!(format!("web/{}", "x".repeat(63)).parse::<Backend>().is_ok());
    }

    #[test]
    fn new_backends_name_their_pool() {
        let new: NewBackend = "web/blue/b4".parse().expect("a name");
        assert_eq!(new.to_string(), "web/blue/b4");
        assert!(said::<NewBackend>("web/b4").contains("SERVICE/POOL/BACKEND"));
        assert!(said::<NewBackend>("web//b4").contains("pool's name is empty"));
    }

    #[test]
    fn scopes() {
        let whole: Scope = "web".parse().expect("a service");
        assert_eq!(whole.backend, None);
        let one: Scope = "web/b1".parse().expect("a backend");
        assert_eq!(one.backend.as_deref(), Some("b1"));
        assert!(said::<Service>("web/b1").contains("\"web\""));
        assert!(said::<Pool>("web/blue").contains("\"blue\""));
    }

    #[test]
    fn drains() {
        assert_eq!("7".parse(), Ok(Drains::Id(7)));
        for text in ["web", "web/b1", "7/b1"] {
            let of: Drains = text.parse().expect(text);
            assert!(matches!(of, Drains::Of(_)) && of.to_string() == text);
        }
    }

    #[test]
    fn weights() {
        assert_eq!("1000".parse(), Ok(Weight(Some(1000))));
        assert_eq!("default".parse(), Ok(Weight(None)));
        for text in ["1001", "-1", "1.5", "", "Default"] {
            assert!(said::<Weight>(text).contains("0 to 1000"), "{text:?}");
        }
    }

    #[test]
    fn addresses() {
        assert!(address("10.0.0.1:80").is_ok());
        assert!(address("[2001:db8::1]:80").is_ok());
        let rows = [
            ("10.0.0.1", "10.0.0.1:8080"),
            ("2001:db8::1", "[2001:db8::1]:8080"),
            ("10.0.0.1:0", "port 0"),
            ("10.0.0.1:65536", "ADDRESS:PORT"),
            ("localhost:80", "no host names"),
        ];
        for (text, part) in rows {
            let said = address(text).expect_err(text).to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("300s"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        let rows = [
            ("300", "300s"),
            ("", "300s"),
            ("-1s", "300s"),
            ("soon", "300s"),
            ("2y", "a year"),
            ("999999999999999999999s", "300s"),
        ];
        for (text, part) in rows {
            let said = duration(text).expect_err(text).to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    #[test]
    fn interfaces() {
        assert!(interface("eth0.100").is_ok());
        for text in ["", "a/b", "..", "a b", "sixteen-bytes-xx"] {
            assert!(interface(text).is_err(), "{text:?}");
        }
    }
}
