//! Every rule that gRFC A6 and gRPC's `service_config.md` and `.proto` have about the document.

mod document;

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
