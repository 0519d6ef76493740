//! gRPC's service config: what a service's owner wants of all its callers, as JSON.

mod duration;
mod node;
mod read;
#[cfg(test)]
mod tests;

use std::{str::FromStr, sync::Arc};

use serde_json::Value;

use super::{Methods, Throttle};
use crate::{Error, balance::Policy, parse::from_text};

/// What gRPC's service config says, read from its [JSON].
///
/// The names, durations and rules are gRPC's, those for retries gRFC A6's. What it does not know is ignored;
/// what is wrong is refused, with its path.
///
/// | | |
/// |---|---|
/// | `methodConfig` | `name`, `timeout`, `waitForReady`, `maxRequestMessageBytes`, `maxResponseMessageBytes`, and `retryPolicy` or `hedgingPolicy` |
/// | `retryThrottling` | a [`Throttle`] |
/// | `loadBalancingConfig` | the first policy that is known: `round_robin`, `weighted_round_robin` ([`Orca`](crate::balance::Orca), with all its settings), `pick_first`, `ring_hash_experimental`, `least_request_experimental`, and those of [`balance::named`](crate::balance::named) |
/// | `loadBalancingPolicy` | the same by its name alone, where there is no `loadBalancingConfig` |
/// | `healthCheckConfig` | the service that [`Grpc::watch`](crate::health::Grpc::watch) asks for |
///
/// ```
/// use tonic_fleet::method::ServiceConfig;
///
/// let config: ServiceConfig = r#"{
///     "methodConfig": [{
///         "name": [{ "service": "shop.Cart" }],
///         "timeout": "1.5s",
///         "retryPolicy": {
///             "maxAttempts": 3,
///             "initialBackoff": "0.1s",
///             "maxBackoff": "1s",
///             "backoffMultiplier": 2,
///             "retryableStatusCodes": ["UNAVAILABLE"]
///         }
///     }]
/// }"#
/// .parse()?;
/// assert!(config.methods().find("/shop.Cart/Show").is_some());
///
/// let wrong = r#"{ "methodConfig": [{ "name": [{}], "timeout": "1.5" }] }"#;
/// let error = wrong.parse::<ServiceConfig>().unwrap_err().to_string();
/// assert!(error.starts_with("service config: methodConfig[0].timeout: "), "{error}");
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
///
/// [JSON]: https://github.com/grpc/grpc/blob/master/doc/service_config.md
#[derive(Clone, Debug, Default)]
pub struct ServiceConfig {
    pub(crate) methods: Methods,
    pub(crate) throttle: Option<Throttle>,
    pub(crate) policy: Option<Named>,
    pub(crate) health: Option<String>,
}

/// A policy, and what was said of it there.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    name: String,
    /// An object, which is empty if there was nothing but the name.
    settings: Value,
    pub(crate) policy: Arc<dyn Policy>,
}

impl Named {
    /// Whether the same was said of the other, so that there is nothing to change.
    pub(crate) fn is_said_like(&self, other: &Self) -> bool {
        self.name == other.name && self.settings == other.settings
    }
}

impl ServiceConfig {
    /// What it says of each method.
    pub fn methods(&self) -> &Methods {
        &self.methods
    }

    /// When nothing is sent again, if it says so.
    pub fn throttle(&self) -> Option<Throttle> {
        self.throttle
    }

    /// How calls are shared out, if it says so.
    pub fn policy(&self) -> Option<&Arc<dyn Policy>> {
        Some(&self.policy.as_ref()?.policy)
    }
}

impl FromStr for ServiceConfig {
    type Err = Error;

    fn from_str(json: &str) -> Result<Self, Error> {
        read::read(json)
    }
}

from_text!(ServiceConfig);
