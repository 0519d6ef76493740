//! What a channel is told of how its calls are to be made, while it lives.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, StreamExt, stream};

use super::Shared;
use crate::{
    Error,
    balance::Policy,
    method::{Configs, Named, ServiceConfig},
};

/// Reads what it is told; what is bad changes nothing.
pub(super) struct Configured {
    told: Configs,
    /// What holds while there is nothing to be told.
    base: ServiceConfig,
    /// The policy that serves, if a configuration may change it.
    policy: Option<Serving>,
}

struct Serving {
    base: Arc<dyn Policy>,
    /// The one that serves instead.
    instead: Option<Named>,
}

impl Configured {
    /// The policy is given when it is for a configuration to say another.
    pub(super) fn new(
        told: Option<Configs>,
        base: ServiceConfig,
        policy: Option<Arc<dyn Policy>>,
    ) -> Self {
        let told = told.unwrap_or_else(|| Box::pin(stream::pending()));
        let serving = |base| Serving {
            base,
            instead: None,
        };
        Self {
            told,
            base,
            policy: policy.map(serving),
        }
    }

    /// The next that is said. After the last, nothing ever is, and what was said holds.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Option<String> {
        // A stream of the user's that panics must not take the channel along.
        let next = AssertUnwindSafe(self.told.next()).catch_unwind();
        match next.await {
            Ok(Some(said)) => return said,
            Ok(None) => {}
            Err(_) => tracing::error!("the stream of configurations panicked; the last one holds"),
        }
        self.told = Box::pin(stream::pending());
        std::future::pending().await
    }

    /// Calls are made like this from now on; the policy, if that is another one.
    pub(super) fn adopt(
        &mut self,
        said: Option<&str>,
        shared: &Shared,
    ) -> Result<Option<Arc<dyn Policy>>, Error> {
        let config = match said {
            Some(json) => json.parse()?,
            None => self.base.clone(),
        };
        shared.wanted.adopt(&config);
        Ok(self
            .policy
            .as_mut()
            .and_then(|policy| policy.adopt(&config, &self.base)))
    }
}

impl Serving {
    fn adopt(&mut self, config: &ServiceConfig, base: &ServiceConfig) -> Option<Arc<dyn Policy>> {
        let base = base.policy.as_ref();
        let is_base = |wanted: &&Named| base.is_some_and(|base| base.is_said_like(wanted));
        let instead = config.policy.as_ref().filter(|wanted| !is_base(wanted));
        // What is said again keeps the policy it has, and what that has learnt.
        let serves = match (&self.instead, instead) {
            (None, None) => true,
            (Some(serves), Some(wanted)) => serves.is_said_like(wanted),
            _ => false,
        };
        if serves {
            return None;
        }
        self.instead = instead.cloned();
        let policy = instead.map_or(&self.base, |instead| &instead.policy);
        Some(Arc::clone(policy))
    }
}

impl fmt::Debug for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::LeastLoaded;

    /// What serves when a configuration says this of the policy, and then that, and so on.
    fn served<'s>(base: &str, said: impl IntoIterator<Item = &'s str>) -> Vec<Option<String>> {
        let config = |policy: &str| -> ServiceConfig {
            let json = format!(r#"{{ "loadBalancingConfig": [{policy}] }}"#);
            json.parse().unwrap()
        };
        let base = config(base);
        let usual: Arc<dyn Policy> = Arc::new(LeastLoaded);
        let mut serving = Serving {
            base: Arc::clone(base.policy().unwrap_or(&usual)),
            instead: None,
        };
        let said = said.into_iter();
        said.map(|said| serving.adopt(&config(said), &base))
            .map(|policy| policy.map(|policy| format!("{policy:?}")))
            .collect()
    }

    #[test]
    fn a_policy_with_other_settings_is_another_one() {
        let small = r#"{ "ring_hash": { "minRingSize": 8 } }"#;
        let large = r#"{ "ring_hash": { "minRingSize": 9 } }"#;

        let from_nothing = served("", [small, large, large, small, ""]);
        let from_small = served(small, [large, large, small, small]);

        assert!(from_nothing[0].as_ref().unwrap().contains('8'));
        assert!(from_nothing[1].as_ref().unwrap().contains('9'));
        assert_eq!(from_nothing[2], None, "it was said already");
        assert_eq!(from_nothing[3], from_nothing[0]);
        assert_eq!(from_nothing[4].as_deref(), Some("LeastLoaded"));
        assert!(from_small[0].as_ref().unwrap().contains('9'));
        assert_eq!(from_small[1], None);
        assert_eq!(from_small[2], from_nothing[0], "what was there first");
        assert_eq!(from_small[3], None);
    }
}
