//! What a channel is told of how its calls are to be made, while it lives.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use futures_util::{FutureExt, StreamExt, stream};

use super::Shared;
use crate::{
    Error,
    balance::Policy,
    method::{Configs, ServiceConfig},
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
    /// The name of the one that serves instead.
    instead: Option<String>,
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
        let wanted = config.policy.as_ref();
        let instead = wanted.filter(|wanted| {
            base.policy
                .as_ref()
                .is_none_or(|base| base.name != wanted.name)
        });
        let name = instead.map(|instead| instead.name.clone());
        if name == self.instead {
            return None;
        }
        self.instead = name;
        let policy = instead.map_or(&self.base, |instead| &instead.policy);
        Some(Arc::clone(policy))
    }
}

impl fmt::Debug for Configured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").finish_non_exhaustive()
    }
}
