//! URLs that nobody meant to write.

use super::{RegistryUrl, Target};
use crate::{Scheme, fuzz, resolve};

const GOOD: [&str; 13] = [
    "etcd://user:S3cr3tPw@h1:2379,h2/shop/cart?layout=kratos&prefix=/a/&ttl=5s",
    "etcd://root:S3cr3tPw@[::1]:2379?tls=true&ca=/ca&cert=/c&key=/k",
    "etcd://user@h/a%40b",
    "static://10.0.0.1:50051,h:1?weights=3,1",
    "static://unix:%2Frun%2Fa.sock/greeter",
    "file:///etc/fleet/greeter.json",
    "file:///etc/fleet?service=a/b",
    "memory://greeter",
    "memory://",
    "dns://greeter.svc:50051",
    "dns://_grpc._tcp.svc/a?srv=true&server=127.0.0.1:5353",
    "dns://[::1]:1",
    "consul://h:8500/greeter?dc=dc1&tag=a,b&passing=true&wait=5s&ttl=5s&token=S3cr3tPw",
];

const WORDS: [&str; 16] = [
    "S3cr3tPw",
    "://",
    "etcd://",
    "file://",
    "dns://",
    "?srv=true",
    "&weights=1",
    "ttl=2s",
    "prefix=",
    "%2F",
    "%40",
    "[::1]",
    ":2379",
    "unix:",
    ".json",
    "service=",
];

/// The password may not be in what is said when all that looks like one stands before the last `@`.
fn secret_in(input: &str) -> bool {
    let secret = "S3cr3tPw";
    // What stands alone before `://` is a scheme, and shown.
    if input.starts_with(|c: char| c.is_ascii_alphanumeric())
        && input
            .split_once("://")
            .is_some_and(|(scheme, _)| scheme.contains(secret))
    {
        return false;
    }
    if input.contains("?token=S3cr3tPw") || input.contains("&token=S3cr3tPw") {
        return input.matches(secret).count() == 1 && input.matches('?').count() == 1;
    }
    match (input.rfind(secret), input.rfind('@')) {
        (Some(last), Some(at)) => last < at,
        _ => false,
    }
}

#[test]
fn a_target_is_refused_with_a_reason_or_read_back_and_keeps_its_secret() {
    fuzz::text(&GOOD, &WORDS, |input| match input.parse::<Target>() {
        Err(error) => {
            let said = format!("{error:?} {}", error.chain());
            assert!(!error.to_string().is_empty());
            assert!(!secret_in(input) || !said.contains("S3cr3tPw"), "{said}");
            false
        }
        Ok(target) => {
            let shown = format!("{target} {target:?}");
            let named = target.user().is_some_and(|user| user.contains("S3cr3tPw"));
            assert!(
                !secret_in(input) || named || !shown.contains("S3cr3tPw"),
                "{shown}"
            );
            let again: Target = target.to_string().parse().unwrap();
            assert_eq!(again.to_string(), target.to_string());
            if !target.registry().has_secret() {
                assert_eq!(again, target);
            }
            // Opening it reads nothing and reaches out to nobody; etcd and Consul may want a runtime, or files.
            if ![Scheme::Etcd, Scheme::Consul].contains(&target.scheme()) {
                let _ = resolve::open(&target);
            }
            true
        }
    });
}

#[test]
fn a_registry_is_refused_with_a_reason_or_read_back() {
    fuzz::text(&GOOD, &WORDS, |input| match input.parse::<RegistryUrl>() {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(
                !secret_in(input) || !error.chain().contains("S3cr3tPw"),
                "{error}"
            );
            false
        }
        Ok(registry) => {
            let again: RegistryUrl = registry.to_string().parse().unwrap();
            assert_eq!(again.to_string(), registry.to_string());
            if !registry.has_secret() {
                assert_eq!(again, registry);
            }
            if let Ok(target) = registry.service("shop/cart") {
                assert!(target.service().as_str().ends_with("shop/cart"));
                assert_eq!(
                    target.to_string().parse::<Target>().unwrap().to_string(),
                    target.to_string()
                );
            }
            true
        }
    });
}
