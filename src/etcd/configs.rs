//! What a service's owner wants of its callers, as it stands in etcd.

use std::pin::Pin;

use futures_core::Stream;
use futures_util::stream;
use tokio::sync::watch::{self, Receiver};

use super::{
    known::KeyChange,
    kv::{Kv, Span},
    registry::Registry,
    watch::{Seen, Watch},
};
use crate::ServiceName;

/// Every key of this kind starts with it; no layout has a service there.
const ROOT: &str = "/fleet/config";

impl Registry {
    /// Where the [configuration](crate::method::ServiceConfig) of a service stands: where its instances are,
    /// but under `/fleet/config`. `/fleet/config/services/{name}`, unless layout or prefix say otherwise; of
    /// several layouts, the first.
    pub fn config_key(&self, service: &ServiceName) -> String {
        let place = self.layouts()[0].prefix(service);
        format!("{ROOT}/{}", place.trim_matches('/'))
    }

    /// The configuration that stands there, now and whenever it changes; none while there is none. For
    /// [`config_from`](crate::Builder::config_from), when the channel is not made of a URL.
    ///
    /// Never ends. Says nothing while the cluster is out of reach.
    pub fn configs(
        &self,
        service: &ServiceName,
    ) -> Pin<Box<dyn Stream<Item = Option<String>> + Send>> {
        let (tell, told) = watch::channel(None);
        let span = Span::Key(self.config_key(service));
        let following = Watch::telling(self.etcd().clone(), span, move |seen| {
            if let Some(said) = said(seen) {
                tell.send_replace(Some(said));
            }
        });
        Box::pin(stream::unfold(
            (told, following),
            |(mut told, following)| async {
                let said = next(&mut told).await?;
                Some((said, (told, following)))
            },
        ))
    }
}

/// What is said of the one key there is, if anything is.
fn said(seen: Seen) -> Option<Option<String>> {
    let text = |kv: &Kv| String::from_utf8_lossy(&kv.value).into_owned();
    match seen {
        Seen::Listed { all, .. } => Some(all.last().map(text)),
        Seen::Changed(changes) | Seen::Skipped { changes, .. } => Some(match changes.last()? {
            KeyChange::Put(kv) => Some(text(kv)),
            KeyChange::Delete { .. } => None,
        }),
        // Who looks after the instances says so.
        Seen::Stale(_) => None,
    }
}

async fn next(told: &mut Receiver<Option<Option<String>>>) -> Option<Option<String>> {
    loop {
        // The sender lives in the watch, which lives as long as this.
        told.changed().await.ok()?;
        if let Some(said) = told.borrow_and_update().clone() {
            return Some(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_configuration_stands_where_no_layout_reads_an_instance() {
        for layout in ["json", "plain", "go-zero", "kratos", "kitex", "go-micro"] {
            let url = format!("etcd://127.0.0.1:1?layout={layout}");
            let registry = Registry::open(&url.parse().unwrap()).unwrap();
            for name in ["greeter", "shop/cart", "fleet", "fleet/config"] {
                let service: ServiceName = name.parse().unwrap();

                let key = registry.config_key(&service);

                assert!(
                    !registry.layouts()[0].owns(&service, &key),
                    "{layout}: {key}"
                );
                assert!(key.starts_with("/fleet/config/"), "{layout}: {key}");
            }
        }
    }

    #[tokio::test]
    async fn a_configuration_has_the_place_of_its_service_under_a_name_of_its_own() {
        for (url, key) in [
            ("etcd://h1", "/fleet/config/services/shop/cart"),
            ("etcd://h1?prefix=/prod/", "/fleet/config/prod/shop/cart"),
        ] {
            let registry = Registry::open(&url.parse().unwrap()).unwrap();

            assert_eq!(registry.config_key(&"shop/cart".parse().unwrap()), key);
        }
    }
}
