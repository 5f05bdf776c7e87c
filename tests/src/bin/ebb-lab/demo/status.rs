//! The fields of `ebb`'s JSON that the demo looks at, in one place.

use serde_json::Value;

/// A backend as the balancer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its pool.
    pub pool: String,
    /// Whether the pool takes new flows.
    pub active: bool,
    /// Its name.
    pub name: String,
    /// What the operator wants of it.
    pub admin: String,
    /// What health says.
    pub health: String,
}

/// `ebb status --json`.
#[derive(Debug, Clone, Default)]
pub struct Status(pub Value);

impl Status {
    /// Every backend of a service.
    pub fn rows(&self, service: &str) -> Vec<Row> {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or("?").to_owned();
        let service = list(&self.0["services"])
            .iter()
            .find(|found| found["name"] == service);
        let pools = service.map_or(&[][..], |service| list(&service["pools"]));
        let rows = pools.iter().flat_map(|pool| {
            list(&pool["backends"]).iter().map(move |backend| Row {
                pool: text(pool, "name"),
                active: pool["active"].as_bool().unwrap_or(false),
                name: text(backend, "name"),
                admin: text(backend, "admin"),
                health: text(backend, "health"),
            })
        });
        rows.collect()
    }

    /// How the program is attached: `native`, `generic`.
    pub fn xdp_mode(&self) -> Option<&str> {
        self.0["node"]["xdp"]["mode"].as_str()
    }

    /// Packets the program has seen.
    pub fn xdp_packets(&self) -> Option<u64> {
        self.0["node"]["xdp"]["packets"].as_u64()
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A drain's receipt in one line.
pub fn drain_line(receipt: &Value) -> String {
    let number = |key: &str| receipt[key].as_u64().unwrap_or(0);
    format!(
        "{}: {} after {:.1} s; of {} flows {} finished, {} idle, {} reset, {} died, {} left; longest {:.1} s",
        receipt["backend"].as_str().unwrap_or("?"),
        receipt["reason"].as_str().unwrap_or("?"),
        receipt["seconds"].as_f64().unwrap_or(f64::NAN),
        number("flows_at_start"),
        number("finished"),
        number("idle_expired"),
        number("reset"),
        number("died"),
        number("left"),
        receipt["longest_s"].as_f64().unwrap_or(f64::NAN),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_service() {
        let status = Status(serde_json::json!({
            "node": { "xdp": { "mode": "native", "packets": 7 } },
            "services": [{ "name": "web", "pools": [
                { "name": "blue", "active": true, "backends": [{ "name": "b1", "admin": "draining", "health": "up" }] },
                { "name": "green", "active": false, "backends": [{ "name": "g1", "admin": "active", "health": "up" }] },
            ]}],
        }));
        let row = &status.rows("web")[0];
        assert_eq!((row.name.as_str(), row.health.as_str()), ("b1", "up"));
        assert_eq!(
            (row.pool.as_str(), row.active, row.admin.as_str()),
            ("blue", true, "draining")
        );
        assert_eq!(status.rows("web").len(), 2);
        assert_eq!(status.rows("other"), []);
        assert_eq!(
            (status.xdp_mode(), status.xdp_packets()),
            (Some("native"), Some(7))
        );
        assert_eq!(Status::default().xdp_packets(), None);
    }
}
