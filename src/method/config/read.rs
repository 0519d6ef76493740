//! What each part of the document means.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tonic::Code;

use super::{
    Named, ServiceConfig,
    node::{Node, shown},
};
use crate::{
    Error,
    balance::{self, Affinity, LeastLoaded, Orca, PickFirst, Policy, RingHash},
    method::{
        Hedge, Method, Methods, Retry, Throttle,
        codes::{self, Codes},
    },
    orca::Metric,
};

pub(super) fn read(json: &str) -> Result<ServiceConfig, Error> {
    let value: Value = serde_json::from_str(json)
        .map_err(|error| Error::config(format!("service config: it is not JSON: {error}")))?;
    let root = Node::root(&value);
    let throttle = root.get("retryThrottling")?.map(|node| throttle(&node));
    Ok(ServiceConfig {
        methods: methods(&root)?,
        throttle: throttle.transpose()?,
        policy: policy(&root)?,
        health: health(&root)?,
    })
}

fn methods(root: &Node<'_>) -> Result<Methods, Error> {
    let mut methods = Methods::new();
    let mut seen: HashMap<String, String> = HashMap::new();
    let Some(list) = root.get("methodConfig")? else {
        return Ok(methods);
    };
    for entry in list.list()? {
        let wanted = method(&entry)?;
        // Without a name it is for nobody, but still has to be right.
        let Some(names) = entry.get("name")? else {
            continue;
        };
        for node in names.list()? {
            let name = name(&node)?;
            if let Some(before) = seen.insert(name.clone(), node.path.clone()) {
                return Err(node.wrong(format!("{name:?} has an entry already, at {before}")));
            }
            methods = methods
                .with(&name, wanted.clone())
                .map_err(|error| node.wrong(error.to_string()))?;
        }
    }
    Ok(methods)
}

/// The name as [`Methods::with`] has it. What is empty, `null` and absent are the same.
fn name(node: &Node<'_>) -> Result<String, Error> {
    let part = |part: &str| {
        let node = node.get(part)?;
        let text = node.as_ref().map_or(Ok(""), Node::text)?;
        let slashes = match part {
            "method" => text.contains('/'),
            _ => text.starts_with('/') || text.ends_with('/'),
        };
        match node {
            Some(node) if slashes => Err(node.wrong(format!("{text:?} has a `/` too many"))),
            _ => Ok(text),
        }
    };
    match (part("service")?, part("method")?) {
        ("", "") => Ok(String::new()),
        ("", method) => Err(node.wrong(format!("method {method:?} is of no service: name it"))),
        (service, "") => Ok(service.to_owned()),
        (service, method) => Ok(format!("{service}/{method}")),
    }
}

fn method(node: &Node<'_>) -> Result<Method, Error> {
    let bytes = |name: &str| {
        let node = node.get(name)?;
        let bytes = node.as_ref().map(Node::whole).transpose()?;
        Ok::<_, Error>(bytes.map(|bytes| bytes as usize))
    };
    let limit = node.get("timeout")?;
    let wait = node.get("waitForReady")?;
    let mut method = Method {
        timeout: limit.as_ref().map(Node::positive_duration).transpose()?,
        wait_for_ready: wait.as_ref().map(Node::truth).transpose()?,
        max_request: bytes("maxRequestMessageBytes")?,
        max_response: bytes("maxResponseMessageBytes")?,
        again: None,
    };
    match (node.get("retryPolicy")?, node.get("hedgingPolicy")?) {
        (Some(_), Some(hedging)) => {
            return Err(hedging.wrong("there is a retryPolicy as well: it is one or the other"));
        }
        (Some(policy), None) => method = method.retry(retry(&policy)?),
        (None, Some(policy)) => method = method.hedge(hedge(&policy)?),
        (None, None) => {}
    }
    Ok(method)
}

fn retry(node: &Node<'_>) -> Result<Retry, Error> {
    let attempts = attempts(node)?;
    let initial = node.need("initialBackoff")?.positive_duration()?;
    let max = node.need("maxBackoff")?.positive_duration()?;
    let multiplier = positive(&node.need("backoffMultiplier")?)?;
    let list = node.need("retryableStatusCodes")?;
    let codes = codes(&list)?;
    if codes.is_empty() {
        return Err(list.wrong("it is empty: name at least one code"));
    }
    let limit = node.get("perAttemptRecvTimeout")?;
    let limit = limit.as_ref().map(Node::positive_duration).transpose()?;
    let mut retry = Retry::attempts(attempts)
        .backoff(initial, max)
        .multiplier(multiplier);
    retry.codes = codes;
    retry.per_attempt = limit;
    Ok(retry)
}

fn hedge(node: &Node<'_>) -> Result<Hedge, Error> {
    let attempts = attempts(node)?;
    let delay = node.get("hedgingDelay")?;
    let delay = delay.as_ref().map(Node::duration).transpose()?;
    let list = node.get("nonFatalStatusCodes")?;
    let mut hedge = Hedge::after(delay.unwrap_or_default()).attempts(attempts);
    hedge.non_fatal = list.as_ref().map(codes).transpose()?.unwrap_or_default();
    Ok(hedge)
}

fn attempts(node: &Node<'_>) -> Result<u32, Error> {
    let node = node.need("maxAttempts")?;
    match node.whole()? {
        few @ (0 | 1) => {
            Err(node.wrong(format!("it is {few}: it is 2 or more, the first included")))
        }
        attempts => Ok(attempts),
    }
}

fn positive(node: &Node<'_>) -> Result<f64, Error> {
    let number = node.number()?;
    if number <= 0.0 {
        return Err(node.wrong(format!("it is {number}: it is more than 0")));
    }
    Ok(number)
}

fn codes(node: &Node<'_>) -> Result<Codes, Error> {
    let codes = node.list()?.map(|node| code(&node));
    codes.collect()
}

fn code(node: &Node<'_>) -> Result<Code, Error> {
    let code = match node.value() {
        Value::String(name) => codes::named(name),
        Value::Number(number) => number.as_i64().and_then(codes::numbered),
        _ => None,
    };
    match code {
        Some(Code::Ok) => Err(node.wrong("OK is no failure: leave it out")),
        Some(code) => Ok(code),
        None => {
            let value = shown(node.value());
            Err(node.wrong(format!(
                "{value} is no status code: it is a name as \"UNAVAILABLE\", or a number from 1 to 16"
            )))
        }
    }
}

fn throttle(node: &Node<'_>) -> Result<Throttle, Error> {
    let tokens = node.need("maxTokens")?;
    let max = tokens.whole()?;
    if !(1..=1_000).contains(&max) {
        return Err(tokens.wrong(format!("it is {max}: it is from 1 to 1000")));
    }
    let ratio = node.need("tokenRatio")?;
    let throttle = Throttle::new(max, positive(&ratio)?);
    throttle
        .check()
        .map_err(|error| ratio.wrong(error.to_string()))?;
    Ok(throttle)
}

fn policy(root: &Node<'_>) -> Result<Option<Named>, Error> {
    if let Some(list) = root.get("loadBalancingConfig")? {
        let mut skipped = Vec::new();
        for node in list.list()? {
            let (name, settings) = node.only()?;
            match known(name, Some(&settings))? {
                Some(policy) => {
                    return Ok(Some(Named {
                        name: name.to_owned(),
                        settings: settings.value().clone(),
                        policy,
                    }));
                }
                None => skipped.push(name),
            }
        }
        if !skipped.is_empty() {
            let skipped = skipped.join(", ");
            return Err(list.wrong(format!("none of {skipped} is known: {KNOWN}")));
        }
    }
    let Some(node) = root.get("loadBalancingPolicy")? else {
        return Ok(None);
    };
    let name = node.text()?.to_ascii_lowercase();
    if ["", "unspecified"].contains(&&*name) {
        return Ok(None);
    }
    let unknown = || node.wrong(format!("{name:?} is not known: {KNOWN}"));
    let policy = known(&name, None)?.ok_or_else(unknown)?;
    Ok(Some(Named {
        name,
        settings: Value::Object(Map::new()),
        policy,
    }))
}

const KNOWN: &str = "name one of round_robin, weighted_round_robin, pick_first, ring_hash_experimental, \
    least_request_experimental, or a policy of this crate";

fn known(name: &str, settings: Option<&Node<'_>>) -> Result<Option<Arc<dyn Policy>>, Error> {
    let setting = |name| settings.map_or(Ok(None), |settings| settings.get(name));
    Ok(match name {
        "weighted_round_robin" => Some(Arc::new(orca(&setting)?)),
        "least_request" | "least_request_experimental" => {
            if let Some(node) = setting("choiceCount")?
                && node.whole()? < 2
            {
                return Err(node.wrong("it is less than 2: there would be no choice"));
            }
            Some(Arc::new(LeastLoaded))
        }
        "pick_first" => {
            let shuffle = setting("shuffleAddressList")?;
            match shuffle.as_ref().map(Node::truth).transpose()? {
                Some(true) => Some(Arc::new(PickFirst::default())),
                _ => Some(Arc::new(PickFirst::in_order())),
            }
        }
        "ring_hash" | "ring_hash_experimental" => Some(Arc::new(ring(&setting)?)),
        name => {
            let policy = balance::named(name).ok();
            if policy.is_some() {
                // There is nothing to set, but what there is has to be an object.
                setting("")?;
            }
            policy
        }
    })
}

/// gRFC A58, with A114's metrics; names of later versions say nothing.
fn orca<'v>(
    setting: &impl Fn(&'static str) -> Result<Option<Node<'v>>, Error>,
) -> Result<Orca, Error> {
    let time = |name| setting(name)?.as_ref().map(Node::duration).transpose();
    let mut orca = Orca::default();
    if let Some(blackout) = time("blackoutPeriod")? {
        orca = orca.blackout(blackout);
    }
    if let Some(expiration) = time("weightExpirationPeriod")? {
        orca = orca.expiration(expiration);
    }
    if let Some(period) = time("weightUpdatePeriod")? {
        orca = orca.update_every(period);
    }
    if let Some(node) = setting("errorUtilizationPenalty")? {
        let penalty = node.number()?;
        orca = orca
            .error_penalty(penalty)
            .map_err(|_| node.wrong("it is negative: it is 0 or more"))?;
    }
    if let Some(node) = setting("metricNamesForComputingUtilization")? {
        let names: Vec<_> = node
            .list()?
            .map(|name| name.text())
            .collect::<Result<_, _>>()?;
        orca = orca.metrics(
            names
                .into_iter()
                .filter(|name| Metric::read(name).is_some()),
        )?;
    }
    let period = time("oobReportingPeriod")?.unwrap_or(OOB_PERIOD);
    match setting("enableOobLoadReport")?
        .as_ref()
        .map(Node::truth)
        .transpose()?
    {
        Some(true) => Ok(orca.out_of_band(period)),
        _ => Ok(orca),
    }
}

/// As A58 has it.
const OOB_PERIOD: Duration = Duration::from_secs(10);

fn ring<'v>(
    setting: &impl Fn(&'static str) -> Result<Option<Node<'v>>, Error>,
) -> Result<RingHash, Error> {
    let size = |name, usual: u32| match setting(name)? {
        None => Ok(usual),
        Some(node) => match node.whole()? {
            size @ 1..=8_388_608 => Ok(size),
            size => Err(node.wrong(format!("it is {size}: it is from 1 to 8388608"))),
        },
    };
    // Gigantic rings cost every client memory: gRPC's clients go no further than this either.
    let [least, most] = [size("minRingSize", 1024)?, size("maxRingSize", 4096)?];
    let (least, most) = (least.min(4096), most.min(4096));
    if least > most {
        let node = setting("minRingSize")?;
        let why = format!("it is {least}: maxRingSize is {most}");
        return Err(node.map_or_else(|| Error::config(why.clone()), |node| node.wrong(&why)));
    }
    let affinity = match setting("requestHashHeader")? {
        Some(node) if !node.text()?.is_empty() => {
            Affinity::header(node.text()?).map_err(|error| node.wrong(error.to_string()))?
        }
        _ => Affinity::default(),
    };
    Ok(RingHash::by(affinity).entries(least as usize, most as usize))
}

fn health(root: &Node<'_>) -> Result<Option<String>, Error> {
    let Some(config) = root.get("healthCheckConfig")? else {
        return Ok(None);
    };
    let name = config.get("serviceName")?;
    let name = name.as_ref().map(Node::text).transpose()?;
    Ok(name.map(str::to_owned))
}
