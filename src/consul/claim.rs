//! Whose a service is that stands with an agent.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use tokio::time::Instant;

use super::{
    agent::{Agent, Question},
    definition::OWNER,
    entry::Service,
};
use crate::{
    Error, ErrorKind, Instance, Result, ServiceName,
    register::{Life, look},
};

/// Asks before a service is written over.
#[derive(Debug)]
pub(super) struct Claim {
    agent: Agent,
    /// The strangers who neither answer nor leave, by the id that they have, and since when.
    silent: BTreeMap<String, (String, Instant)>,
}

/// A question that an agent answers from its own memory.
const LIMIT: Duration = Duration::from_secs(2);

/// One who is dead is critical within this, unless his time to live is unusually long.
const SILENCE: Duration = Duration::from_secs(30);

/// The one word of an answer about an agent's health that counts.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    aggregated_status: String,
}

impl Claim {
    pub(super) fn new(agent: Agent) -> Self {
        Self {
            agent,
            silent: BTreeMap::new(),
        }
    }

    /// Whether what stands there was written by this owner.
    pub(super) async fn is_written_by(&self, id: &str, owner: &str) -> Result<bool> {
        let standing = self.standing(id).await?;
        Ok(standing.is_some_and(|standing| standing.is_written_by(owner)))
    }

    /// Whether this owner's service stands there. If not, it may be written: nobody's does, or a dead one's.
    ///
    /// Fails with `Conflict` when a living stranger's does.
    pub(super) async fn is_ours(
        &mut self,
        id: &str,
        owner: &str,
        service: &ServiceName,
        own: &Instance,
    ) -> Result<bool> {
        let standing = match self.standing(id).await? {
            Some(standing) if !standing.is_written_by(owner) => standing,
            standing => {
                self.silent.remove(id);
                return Ok(standing.is_some());
            }
        };
        // One without an address is on the agent's machine.
        let Ok(other) = standing.instance(service, &self.agent.address.host()) else {
            tracing::warn!(id, "writing over what no client can read");
            return Ok(false);
        };
        // We listen there, so it was us; and who leaves makes room.
        if other.addresses == own.addresses || other.is_draining() {
            return Ok(false);
        }
        match look(&other).await {
            Life::Refuses => Ok(false),
            Life::Answers => Err(stranger(id, &other, "answers")),
            Life::Silent if self.is_critical(id).await? => Ok(false),
            Life::Silent => Err(self.is_silent(id, &standing, &other)),
        }
    }

    fn is_silent(&mut self, id: &str, standing: &Service, other: &Instance) -> Error {
        let owner = standing.meta.get(OWNER).cloned().unwrap_or_default();
        let now = Instant::now();
        let since = match self.silent.get(id) {
            Some((who, since)) if *who == owner => *since,
            _ => now,
        };
        self.silent.insert(id.to_owned(), (owner, since));
        if now >= since + SILENCE {
            return stranger(id, other, "keeps it, though it does not answer us");
        }
        let doing = format!("register {id}: waiting for one who is silent to become critical");
        Error::new(ErrorKind::Unavailable, doing).because(stranger(id, other, "is silent"))
    }

    async fn standing(&self, id: &str) -> Result<Option<Service>> {
        let question = Question::get("/v1/agent/service/", id);
        let answer = self.agent.ask(question, LIMIT).await?;
        if answer.status() == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let doing = || format!("look for {id}");
        if let Some((kind, why)) = answer.refusal() {
            return Err(Error::new(kind, doing()).because(why));
        }
        let read = serde_json::from_slice(&answer.body);
        read.map(Some)
            .map_err(|error| Error::new(ErrorKind::Decode, doing()).because(error))
    }

    async fn is_critical(&self, id: &str) -> Result<bool> {
        let question = Question::get("/v1/agent/health/service/id/", id);
        let answer = self.agent.ask(question, LIMIT).await?;
        let health = serde_json::from_slice::<Health>(&answer.body);
        Ok(health.is_ok_and(|health| health.aggregated_status == "critical"))
    }
}

impl Service {
    fn is_written_by(&self, owner: &str) -> bool {
        self.meta.get(OWNER).is_some_and(|writer| writer == owner)
    }
}

fn stranger(id: &str, other: &Instance, how: &str) -> Error {
    let doing = format!(
        "register {id}: {} has this id, and {how}",
        other.addresses[0]
    );
    Error::new(ErrorKind::Conflict, doing).because("give one of the two another id")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A claim on an agent that is not asked.
    fn claim() -> Claim {
        Claim::new(Agent {
            address: "127.0.0.1:8500".parse().unwrap(),
            tls: None,
            token: None,
            namespace: None,
        })
    }

    #[tokio::test]
    async fn one_who_gave_no_address_and_is_alive_is_left_alone() {
        let [agent, other] = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let port = other.local_addr().unwrap().port();
        let mut claim = claim();
        claim.agent.address = agent.local_addr().unwrap().try_into().unwrap();
        let answering = tokio::spawn(async move {
            let (mut io, _) = agent.accept().await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                assert_ne!(io.read_buf(&mut heard).await.unwrap(), 0);
            }
            let body = serde_json::json!({ "ID": "a/x", "Port": port }).to_string();
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            io.write_all(answer.as_bytes()).await.unwrap();
        });
        let own = Instance::at("127.0.0.2:1").unwrap();

        let ours = claim
            .is_ours("a/x", "me", &"a".parse().unwrap(), &own)
            .await;

        assert_eq!(ours.unwrap_err().kind(), ErrorKind::Conflict);
        answering.await.unwrap();
    }

    fn owned_by(owner: &str) -> Service {
        let mut service = Service::default();
        service.meta.insert(OWNER.into(), owner.into());
        service
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_is_remembered_for_each_id() {
        let mut claim = claim();
        let other = Instance::at("10.0.0.1:1").unwrap();
        let [one, two] = ["one", "two"].map(owned_by);
        for (id, standing) in [("a/x", &one), ("b/x", &two)] {
            let first = claim.is_silent(id, standing, &other);
            assert_eq!(first.kind(), ErrorKind::Unavailable);
        }

        tokio::time::advance(SILENCE).await;

        for (id, standing) in [("a/x", &one), ("b/x", &two)] {
            let later = claim.is_silent(id, standing, &other);
            assert_eq!(later.kind(), ErrorKind::Conflict, "{id}");
        }
        let anew = claim.is_silent("a/x", &two, &other);
        assert_eq!(anew.kind(), ErrorKind::Unavailable);
    }
}
