//! Every rule that gRFC A6 and gRPC's `service_config.md` and `.proto` have about the document.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tonic::Code;

use super::ServiceConfig;
use crate::method::{Again, Delay, Hedge, Method, Retry, Throttle};

fn read(json: &Value) -> ServiceConfig {
    json.to_string().parse().unwrap()
}

fn refused(json: &Value) -> String {
    let error = json
        .to_string()
        .parse::<ServiceConfig>()
        .unwrap_err()
        .to_string();
    let error = error.strip_prefix("service config: ").expect(&error);
    error.to_owned()
}

/// What it says of the one method there is an entry for, if this is in the entry.
fn with(members: Value) -> Value {
    let mut entry = json!({ "name": [{}] });
    entry
        .as_object_mut()
        .unwrap()
        .extend(members.as_object().unwrap().clone());
    json!({ "methodConfig": [entry] })
}

fn method(members: Value) -> Method {
    read(&with(members)).methods().find("/any").unwrap().clone()
}

fn retry_policy() -> Value {
    json!({
        "maxAttempts": 4,
        "initialBackoff": ".1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]
    })
}

/// The policy with this member instead of its own; without it, when that is `null`.
fn retry_with(member: &str, value: Value) -> Value {
    let mut policy = retry_policy();
    policy[member] = value;
    with(json!({ "retryPolicy": policy }))
}

fn retry(members: &Value) -> Retry {
    match read(members).methods().find("/any").unwrap().again() {
        Some(Again::Retry(retry)) => retry.clone(),
        other => panic!("{other:?}"),
    }
}

fn hedge(policy: Value) -> Hedge {
    match method(json!({ "hedgingPolicy": policy })).again() {
        Some(Again::Hedge(hedge)) => hedge.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a6_the_example_of_a_retry_policy_has_the_right_meaning() {
    let retry = retry(&with(json!({ "retryPolicy": retry_policy() })));

    let (initial, max) = (Duration::from_millis(100), Duration::from_secs(1));
    assert_eq!(
        retry,
        Retry::attempts(4)
            .backoff(initial, max)
            .multiplier(2.0)
            .on([Code::Unavailable])
    );
    assert_eq!(retry.jitter, 0.2);
}

#[test]
fn a6_the_example_of_a_hedging_policy_has_the_right_meaning() {
    let hedge = hedge(json!({
        "maxAttempts": 4,
        "hedgingDelay": ".5s",
        "nonFatalStatusCodes": ["UNAVAILABLE", "INTERNAL", "ABORTED"]
    }));

    let codes = [Code::Unavailable, Code::Internal, Code::Aborted];
    let delay = Duration::from_millis(500);
    assert_eq!(hedge, Hedge::after(delay).attempts(4).non_fatal(codes));
}

#[test]
fn a6_the_example_of_throttling_has_the_right_meaning() {
    let config = read(&json!({ "retryThrottling": { "maxTokens": 10, "tokenRatio": 0.1 } }));

    assert_eq!(config.throttle(), Some(Throttle::new(10, 0.1)));
}

#[test]
fn a6_nothing_is_retried_or_hedged_unless_a_policy_says_so() {
    let config = read(&with(json!({ "timeout": "1s" })));

    assert_eq!(config.methods().find("/any").unwrap().again(), None);
    assert!(config.throttle().is_none() && read(&json!({})).methods().is_empty());
}

#[test]
fn a6_a_method_has_a_retry_policy_or_a_hedging_policy_and_not_both() {
    let both =
        with(json!({ "retryPolicy": retry_policy(), "hedgingPolicy": { "maxAttempts": 2 } }));

    assert_eq!(
        refused(&both),
        "methodConfig[0].hedgingPolicy: there is a retryPolicy as well: it is one or the other"
    );
}

#[test]
fn a6_max_attempts_of_a_retry_is_required_and_two_or_more() {
    let at = "methodConfig[0].retryPolicy.maxAttempts: ";
    for (value, why) in [
        (json!(null), "it is required"),
        (json!(0), "it is 0: it is 2 or more"),
        (json!(1), "it is 1: it is 2 or more"),
        (json!(-3), "-3 is not a whole number"),
        (json!(2.5), "2.5 is not a whole number"),
        (json!(4_294_967_296_u64), "4294967296 is not a whole number"),
        (json!("many"), "\"many\" is not a number"),
        (json!([]), "a list is not a number"),
    ] {
        let refused = refused(&retry_with("maxAttempts", value));
        assert!(refused.starts_with(&format!("{at}{why}")), "{refused}");
    }
    // Protobuf lets a number be text, and have a point.
    for two in [json!(2), json!("2"), json!(2.0)] {
        assert_eq!(retry(&retry_with("maxAttempts", two)).attempts, 2);
    }
}

#[test]
fn a6_max_attempts_above_the_clients_limit_counts_as_the_limit() {
    let config = read(&retry_with("maxAttempts", json!(100)));

    let limited = config.methods.at_most(5);

    let Some(Again::Retry(retry)) = limited.find("/any").unwrap().again() else {
        panic!("{limited:?}");
    };
    assert_eq!(retry.attempts, 5);
}

#[test]
fn a6_a_client_whose_limit_is_one_neither_retries_nor_hedges() {
    let config = read(&retry_with("maxAttempts", json!(100)));

    let limited = config.methods.at_most(1);

    assert_eq!(limited.find("/any").unwrap().again(), None);
}

#[test]
fn a6_the_backoffs_are_required_and_more_than_zero() {
    for member in ["initialBackoff", "maxBackoff"] {
        let at = format!("methodConfig[0].retryPolicy.{member}: ");
        for (value, why) in [
            (json!(null), "it is required"),
            (json!("0s"), "it is 0: it must be more"),
            (json!("-1s"), "\"-1s\": a duration here is not negative"),
            (json!("1"), "\"1\": a duration is seconds and an `s`"),
            (json!(1), "1 is not a text"),
        ] {
            let refused = refused(&retry_with(member, value));
            assert!(refused.starts_with(&format!("{at}{why}")), "{refused}");
        }
    }
}

#[test]
fn a6_the_multiplier_is_required_and_more_than_zero() {
    let at = "methodConfig[0].retryPolicy.backoffMultiplier: ";
    for (value, why) in [
        (json!(null), "it is required"),
        (json!(0), "it is 0: it is more than 0"),
        (json!(-1.5), "it is -1.5: it is more than 0"),
        (json!("NaN"), "\"NaN\" is not a number"),
        (json!("Infinity"), "\"Infinity\" is not a number"),
        (json!({}), "an object is not a number"),
    ] {
        let refused = refused(&retry_with("backoffMultiplier", value));
        assert!(refused.starts_with(&format!("{at}{why}")), "{refused}");
    }
    // Less than one is odd, and allowed.
    assert_eq!(
        retry(&retry_with("backoffMultiplier", json!(0.5))).multiplier,
        0.5
    );
}

#[test]
fn a6_the_retryable_codes_are_required_and_not_empty() {
    let at = "methodConfig[0].retryPolicy.retryableStatusCodes";
    for (value, why) in [
        (json!(null), ": it is required"),
        (json!([]), ": it is empty: name at least one code"),
        (json!("UNAVAILABLE"), ": \"UNAVAILABLE\" is not a list"),
        (
            json!(["ABORTED", "GONE"]),
            "[1]: \"GONE\" is no status code",
        ),
        (json!([17]), "[0]: 17 is no status code"),
        (json!([-1]), "[0]: -1 is no status code"),
        (json!([14.5]), "[0]: 14.5 is no status code"),
        (json!([null]), "[0]: null is no status code"),
        (json!(["OK"]), "[0]: OK is no failure"),
        (json!([0]), "[0]: OK is no failure"),
    ] {
        let refused = refused(&retry_with("retryableStatusCodes", value));
        assert!(refused.starts_with(&format!("{at}{why}")), "{refused}");
    }
}

#[test]
fn a6_codes_are_names_in_any_case_or_numbers() {
    let codes = json!(["unavailable", "Deadline_Exceeded", "ABORTED", 8]);

    let retry = retry(&retry_with("retryableStatusCodes", codes));

    let wanted = [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Aborted,
        Code::ResourceExhausted,
    ];
    assert_eq!(retry.codes, wanted.into_iter().collect());
}

#[test]
fn a6_max_attempts_of_a_hedge_is_required_and_two_or_more() {
    let at = "methodConfig[0].hedgingPolicy.maxAttempts: ";
    for (policy, why) in [
        (json!({}), "it is required"),
        (json!({ "maxAttempts": 1 }), "it is 1: it is 2 or more"),
    ] {
        let refused = refused(&with(json!({ "hedgingPolicy": policy })));
        assert!(refused.starts_with(&format!("{at}{why}")), "{refused}");
    }
}

#[test]
fn a6_without_a_hedging_delay_all_attempts_are_sent_at_once() {
    for policy in [
        json!({ "maxAttempts": 4 }),
        json!({ "maxAttempts": 4, "hedgingDelay": "0s" }),
    ] {
        assert_eq!(hedge(policy).delay, Delay::Fixed(Duration::ZERO));
    }
}

#[test]
fn a6_a_wrong_hedging_delay_or_code_is_refused() {
    let at = "methodConfig[0].hedgingPolicy.";
    for (policy, why) in [
        (
            json!({ "maxAttempts": 2, "hedgingDelay": "5" }),
            "hedgingDelay: \"5\": a duration is",
        ),
        (
            json!({ "maxAttempts": 2, "hedgingDelay": "-5s" }),
            "hedgingDelay: \"-5s\": a duration",
        ),
        (
            json!({ "maxAttempts": 2, "nonFatalStatusCodes": ["ABORTED", true] }),
            "nonFatalStatusCodes[1]: true is no status code",
        ),
        (
            json!({ "maxAttempts": 2, "nonFatalStatusCodes": {} }),
            "nonFatalStatusCodes: an object is not a list",
        ),
    ] {
        let refused = refused(&with(json!({ "hedgingPolicy": policy })));
        assert!(refused.starts_with(&format!("{at}{why}")), "{refused}");
    }
}

#[test]
fn a6_codes_that_are_not_fatal_may_be_left_out() {
    assert!(hedge(json!({ "maxAttempts": 2 })).non_fatal.is_empty());
}

#[test]
fn a6_max_tokens_is_required_and_from_1_to_1000() {
    for (value, why) in [
        (json!(null), "it is required"),
        (json!(0), "it is 0: it is from 1 to 1000"),
        (json!(1001), "it is 1001: it is from 1 to 1000"),
        (json!(-1), "-1 is not a whole number"),
        (json!("ten"), "\"ten\" is not a number"),
    ] {
        let config = json!({ "retryThrottling": { "maxTokens": value, "tokenRatio": 0.1 } });
        let refused = refused(&config);
        assert!(
            refused.starts_with(&format!("retryThrottling.maxTokens: {why}")),
            "{refused}"
        );
    }
}

#[test]
fn a6_the_token_ratio_is_required_and_more_than_zero() {
    for (value, why) in [
        (json!(null), "it is required"),
        (json!(0), "it is 0: it is more than 0"),
        (json!(-0.1), "it is -0.1: it is more than 0"),
        (
            json!(0.0001),
            "throttle: token_ratio is less than a thousandth",
        ),
    ] {
        let config = json!({ "retryThrottling": { "maxTokens": 10, "tokenRatio": value } });
        let refused = refused(&config);
        assert!(
            refused.starts_with(&format!("retryThrottling.tokenRatio: {why}")),
            "{refused}"
        );
    }
}

#[test]
fn a6_three_decimals_of_the_token_ratio_count() {
    let config = json!({ "retryThrottling": { "maxTokens": 10, "tokenRatio": 0.5479 } });

    assert_eq!(read(&config).throttle(), Some(Throttle::new(10, 0.548)));
}

#[test]
fn a6_throttling_is_for_the_server_name_and_not_for_a_method() {
    let throttling = json!({ "retryThrottling": { "maxTokens": 10, "tokenRatio": 0.1 } });

    assert_eq!(read(&with(throttling)).throttle(), None);
}

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
            "Weighted",
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

/// A document with one of each, to be spoilt.
const WHOLE: &str = r#"{"methodConfig":[{"name":[{"service":"s","method":"m"}],"timeout":"1.5s",
    "waitForReady":true,"maxRequestMessageBytes":10,"retryPolicy":{"maxAttempts":4,"initialBackoff":".1s",
    "maxBackoff":"1s","backoffMultiplier":2e0,"retryableStatusCodes":["UNAVAILABLE",14]}}],
    "retryThrottling":{"maxTokens":10,"tokenRatio":0.1},"loadBalancingConfig":[{"round_robin":{}}],
    "healthCheckConfig":{"serviceName":""}}"#;

proptest! {
    #[test]
    fn whatever_is_read_is_a_configuration_or_an_error(
        at in 0..WHOLE.len(),
        cut in 0_usize..20,
        put in r#"[-0-9a-z{}\[\]",:.eEs/ ]{0,12}"#,
    ) {
        let end = (at + cut).min(WHOLE.len());
        let spoilt = format!("{}{put}{}", &WHOLE[..at], &WHOLE[end..]);

        if let Err(error) = spoilt.parse::<ServiceConfig>() {
            prop_assert!(error.to_string().starts_with("service config: "), "{}", error);
        }
    }
}
