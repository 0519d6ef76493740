//! The rest of the document: names, limits, policies, and whatever is malformed.

use super::*;

#[test]
fn the_form_in_grpcs_documentation_has_the_right_meaning() {
    let config = read(&json!({
        "loadBalancingPolicy": "round_robin",
        "methodConfig": [
            { "name": [{ "service": "MyService" }], "waitForReady": true, "timeout": "10s" },
            {
                "name": [{ "service": "MyService", "method": "Foo" }],
                "maxRequestMessageBytes": 1024,
                "maxResponseMessageBytes": 0
            }
        ]
    }));

    let ten = Method::new()
        .timeout(Duration::from_secs(10))
        .wait_for_ready(true);
    let foo = Method::new().max_request_bytes(1024).max_response_bytes(0);
    assert_eq!(config.methods().find("/MyService/Foo"), Some(&foo));
    assert_eq!(config.methods().find("/MyService/Bar"), Some(&ten));
    assert_eq!(config.methods().find("/Another/Foo"), None);
    assert!(format!("{:?}", config.policy()).contains("RoundRobin"));
}

#[test]
fn a_name_that_is_absent_null_or_empty_is_the_same() {
    for service in [
        json!({ "service": "s" }),
        json!({ "service": "s", "method": null }),
    ] {
        let config = json!({ "methodConfig": [
            { "name": [service] },
            { "name": [{ "service": "s", "method": "" }] }
        ]});
        assert_eq!(
            refused(&config),
            "methodConfig[1].name[0]: \"s\" has an entry already, at methodConfig[0].name[0]"
        );
    }
}

#[test]
fn a_name_is_unique_in_the_whole_document() {
    let name = json!({ "service": "s", "method": "m" });
    let config = json!({ "methodConfig": [{ "name": [{ "service": "s" }, name, name] }] });

    assert_eq!(
        refused(&config),
        "methodConfig[0].name[2]: \"s/m\" has an entry already, at methodConfig[0].name[1]"
    );
}

#[test]
fn a_method_without_a_service_is_refused() {
    for name in [
        json!({ "method": "m" }),
        json!({ "service": "", "method": "m" }),
    ] {
        let refused = refused(&json!({ "methodConfig": [{ "name": [name] }] }));
        assert_eq!(
            refused,
            "methodConfig[0].name[0]: method \"m\" is of no service: name it"
        );
    }
}

#[test]
fn an_entry_without_names_is_for_nobody() {
    for names in [json!({}), json!({ "name": [] }), json!({ "name": null })] {
        assert!(
            read(&json!({ "methodConfig": [names] }))
                .methods()
                .is_empty()
        );
    }
}

#[test]
fn the_rest_of_the_malformed_is_refused_with_its_path() {
    for (config, words) in [
        (json!([]), "a list is not an object"),
        (
            json!({ "methodConfig": {} }),
            "methodConfig: an object is not a list",
        ),
        (
            json!({ "methodConfig": [7] }),
            "methodConfig[0]: 7 is not an object",
        ),
        (
            json!({ "methodConfig": [{ "name": {} }] }),
            "methodConfig[0].name: an object is not a list",
        ),
        (
            json!({ "methodConfig": [{ "name": ["s"] }] }),
            "methodConfig[0].name[0]: \"s\" is not an object",
        ),
        (
            json!({ "methodConfig": [{ "name": [{ "service": 7 }] }] }),
            "methodConfig[0].name[0].service: 7 is not a text",
        ),
        (
            json!({ "methodConfig": [{ "name": [{ "service": "/s" }] }] }),
            "methodConfig[0].name[0].service: \"/s\" has a `/` too many",
        ),
        (
            json!({ "methodConfig": [{ "name": [{ "service": "s", "method": "a/b" }] }] }),
            "methodConfig[0].name[0].method: \"a/b\" has a `/` too many",
        ),
        (
            json!({ "methodConfig": [{ "name": [{ "service": "s t" }] }] }),
            "methodConfig[0].name[0]: method \"s t\": a name is",
        ),
        (
            with(json!({ "timeout": 5 })),
            "methodConfig[0].timeout: 5 is not a text",
        ),
        (
            with(json!({ "timeout": "0s" })),
            "methodConfig[0].timeout: it is 0",
        ),
        (
            with(json!({ "waitForReady": "yes" })),
            "methodConfig[0].waitForReady: \"yes\" is not true",
        ),
        (
            with(json!({ "maxRequestMessageBytes": -1 })),
            "methodConfig[0].maxRequestMessageBytes: -1 is not a whole number",
        ),
        (
            with(json!({ "maxResponseMessageBytes": 4_294_967_296_u64 })),
            "methodConfig[0].maxResponseMessageBytes: 4294967296 is not a whole number",
        ),
        (
            with(json!({ "retryPolicy": [] })),
            "methodConfig[0].retryPolicy: a list is not an object",
        ),
        (
            retry_with("perAttemptRecvTimeout", json!("0s")),
            "methodConfig[0].retryPolicy.perAttemptRecvTimeout: it is 0",
        ),
        (
            json!({ "retryThrottling": 1 }),
            "retryThrottling: 1 is not an object",
        ),
        (
            json!({ "loadBalancingPolicy": 1 }),
            "loadBalancingPolicy: 1 is not a text",
        ),
        (
            json!({ "loadBalancingPolicy": "grpclb" }),
            "loadBalancingPolicy: \"grpclb\" is not known: name one of round_robin",
        ),
        (
            json!({ "loadBalancingConfig": {} }),
            "loadBalancingConfig: an object is not a list",
        ),
        (
            json!({ "loadBalancingConfig": [{ "grpclb": {} }, { "xds": {} }] }),
            "loadBalancingConfig: none of grpclb, xds is known: name one of",
        ),
        (
            json!({ "loadBalancingConfig": [{ "grpclb": {}, "xds": {} }] }),
            "loadBalancingConfig[0]: it has exactly one name",
        ),
        (
            json!({ "loadBalancingConfig": [{}] }),
            "loadBalancingConfig[0]: it has exactly one name",
        ),
        (
            json!({ "loadBalancingConfig": [{ "round_robin": 1 }] }),
            "loadBalancingConfig[0].round_robin: 1 is not an object",
        ),
        (
            json!({ "loadBalancingConfig": [{ "weighted_round_robin": { "errorUtilizationPenalty": -1 } }] }),
            "loadBalancingConfig[0].weighted_round_robin.errorUtilizationPenalty: it is negative",
        ),
        (
            json!({ "loadBalancingConfig": [{ "least_request_experimental": { "choiceCount": 1 } }] }),
            "loadBalancingConfig[0].least_request_experimental.choiceCount: it is less than 2",
        ),
        (
            json!({ "loadBalancingConfig": [{ "pick_first": { "shuffleAddressList": 1 } }] }),
            "loadBalancingConfig[0].pick_first.shuffleAddressList: 1 is not true or false",
        ),
        (
            json!({ "loadBalancingConfig": [{ "ring_hash": { "minRingSize": 9_000_000 } }] }),
            "loadBalancingConfig[0].ring_hash.minRingSize: it is 9000000: it is from 1 to 8388608",
        ),
        (
            json!({ "loadBalancingConfig": [{ "ring_hash": { "minRingSize": 9, "maxRingSize": 8 } }] }),
            "loadBalancingConfig[0].ring_hash.minRingSize: it is 9: maxRingSize is 8",
        ),
        (
            json!({ "loadBalancingConfig": [{ "ring_hash": { "requestHashHeader": "a b" } }] }),
            "loadBalancingConfig[0].ring_hash.requestHashHeader: \"a b\" is no name of a header",
        ),
        (
            json!({ "healthCheckConfig": "x" }),
            "healthCheckConfig: \"x\" is not an object",
        ),
        (
            json!({ "healthCheckConfig": { "serviceName": 1 } }),
            "healthCheckConfig.serviceName: 1 is not a text",
        ),
    ] {
        let refused = refused(&config);
        assert!(refused.starts_with(words), "{refused:?} is not {words:?}");
    }
}

#[test]
fn what_is_no_json_is_refused_with_its_place() {
    for text in ["", "{", "{'a': 1}", "{\"methodConfig\": [}"] {
        let error = text.parse::<ServiceConfig>().unwrap_err().to_string();
        assert!(
            error.starts_with("service config: it is not JSON: "),
            "{error}"
        );
        assert!(error.contains("line 1 column"), "{error}");
    }
}

#[test]
fn what_is_unknown_is_ignored() {
    let config = read(&json!({
        "connectionScaling": { "maxConnectionsPerSubchannel": 2 },
        "methodConfig": [{
            "name": [{ "service": "s", "color": "red" }],
            "retryPolicy": { "maxAttempts": 2, "initialBackoff": "1s", "maxBackoff": "1s",
                "backoffMultiplier": 1, "retryableStatusCodes": [14], "mood": {} }
        }],
        "healthCheckConfig": {},
    }));

    assert!(config.methods().find("/s/m").is_some());
}

#[test]
fn the_first_policy_that_is_known_is_taken() {
    for (list, policy) in [
        (
            json!([{ "grpclb": {} }, { "round_robin": {} }, { "random": {} }]),
            "RoundRobin",
        ),
        (
            json!([{ "weighted_round_robin": { "blackoutPeriod": "10s" } }]),
            "Orca",
        ),
        (
            json!([{ "least_request_experimental": { "choiceCount": 2 } }]),
            "LeastLoaded",
        ),
        (json!([{ "weighted_random": {} }]), "WeightedRandom"),
    ] {
        // The old way to name it counts for nothing beside the new one.
        let config = read(&json!({ "loadBalancingConfig": list, "loadBalancingPolicy": "nope" }));
        assert!(
            format!("{:?}", config.policy().unwrap()).starts_with(policy),
            "{config:?}"
        );
    }
}

#[test]
fn all_that_weighted_round_robin_can_be_told_is_heard() {
    let config = read(&json!({ "loadBalancingConfig": [{ "weighted_round_robin": {
        "enableOobLoadReport": true,
        "oobReportingPeriod": "7s",
        "blackoutPeriod": "3s",
        "weightExpirationPeriod": "60s",
        "weightUpdatePeriod": "2s",
        "errorUtilizationPenalty": 1.5,
        "metricNamesForComputingUtilization": ["named_metrics.queue", "of_a_later_version"],
    } }] }));

    let heard = format!("{:?}", config.policy().unwrap());

    for said in [
        "out_of_band: true",
        "every: Some(7s)",
        "blackout: 3s",
        "expiration: 60s",
        "update: 2s",
        "penalty: 1.5",
        r#"metrics: [Named("queue")]"#,
    ] {
        assert!(heard.contains(said), "{said} in {heard}");
    }
}

#[test]
fn the_name_of_a_policy_alone_is_taken_in_any_case() {
    for name in ["round_robin", "ROUND_ROBIN"] {
        let config = read(&json!({ "loadBalancingPolicy": name, "loadBalancingConfig": [] }));
        assert!(format!("{:?}", config.policy()).contains("RoundRobin"));
    }
    assert!(
        read(&json!({ "loadBalancingPolicy": "UNSPECIFIED" }))
            .policy()
            .is_none()
    );
}

#[test]
fn who_is_asked_for_its_health_may_have_an_empty_name() {
    let health = |config| read(&config).health;

    assert_eq!(
        health(json!({ "healthCheckConfig": { "serviceName": "" } })),
        Some(String::new())
    );
    assert_eq!(health(json!({ "healthCheckConfig": {} })), None);
}
