//! How a cluster is asked: one member at a time, every question with a time limit.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use etcd_client::{Channel, Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use rand::seq::SliceRandom;
use tokio::{runtime::Handle, sync::OnceCell, time::timeout};
use tower::util::BoxCloneSyncService;

use super::{
    failure::{Failure, Remedy},
    line::{self, Line},
    options::Options,
};
use crate::{Error, ErrorKind, Instance, Result, lock::locked, transport::Dialer};

/// A handle on an etcd cluster; clones are cheap and share the connection.
///
/// One member is asked at a time, the same one for as long as it answers. When it does not, the next
/// is asked, over a new connection: an old one may take many seconds to notice that its path is whole
/// again. Opening never touches the network, and needs a Tokio runtime: the handle belongs to it.
///
/// The connection closes with the last clone.
#[derive(Clone)]
pub struct Etcd(Arc<Inner>);

struct Inner {
    /// In the order in which they are asked.
    members: Vec<Arc<str>>,
    options: Options,
    dialer: Dialer,
    runtime: Handle,
    slot: Mutex<Arc<Slot>>,
    complaint: Mutex<Complaint>,
}

/// A way to one member; replaced as a whole when it is in doubt.
pub(super) struct Slot {
    at: usize,
    member: Arc<str>,
    clients: OnceCell<Clients>,
}

#[derive(Clone)]
pub(super) struct Clients {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
}

/// The failure that comes again and again, which is a mistake more often than an outage.
#[derive(Default)]
struct Complaint {
    words: String,
    times: u32,
}

/// What may be tried again when it failed.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Again {
    /// Whatever failed for a while only.
    Read,
    /// Only what was certainly never applied.
    Write,
}

/// A question on its way.
pub(super) type Asking<T> = Pin<Box<dyn Future<Output = Result<T, etcd_client::Error>> + Send>>;

/// Every handle that is alive, so that the same cluster is not opened twice.
static SHARED: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Etcd {
    /// A handle on the cluster of these members, each `host:port`.
    ///
    /// Fails outside of a Tokio runtime.
    pub fn open<M: AsRef<str>>(members: &[M], options: Options) -> Result<Self> {
        let mut members = checked(members)?;
        options.check()?;
        // Not all clients should ask the same member.
        members.shuffle(&mut rand::rng());
        let slot = Slot::new(0, &members);
        Ok(Self(Arc::new(Inner {
            members,
            dialer: line::dialer(options.tls_given()),
            options,
            runtime: runtime()?,
            slot: Mutex::new(slot),
            complaint: Mutex::default(),
        })))
    }

    /// The handle that this process already has on this cluster, with the same options and in this
    /// runtime, or a new one.
    ///
    /// Fails outside of a Tokio runtime.
    pub fn shared<M: AsRef<str>>(members: &[M], options: Options) -> Result<Self> {
        let mut wanted = checked(members)?;
        wanted.sort_unstable();
        // A client that was made in another runtime is dead here, for good.
        let runtime = runtime()?;
        let mut shared = locked(&SHARED);
        shared.retain(|one| one.strong_count() > 0);
        let found = shared.iter().filter_map(Weak::upgrade).find(|one| {
            one.runtime.id() == runtime.id() && one.options == options && one.is_over(&wanted)
        });
        if let Some(inner) = found {
            return Ok(Self(inner));
        }
        let etcd = Self::open(members, options)?;
        shared.push(Arc::downgrade(&etcd.0));
        Ok(etcd)
    }

    /// The members, in the order in which they are asked.
    pub fn members(&self) -> &[Arc<str>] {
        &self.0.members
    }

    /// The member that is asked now.
    pub fn member(&self) -> Arc<str> {
        Arc::clone(&self.slot().member)
    }

    /// Whether both are the same handle.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Asks the current member, and others when it fails, each within `limit`.
    pub(super) async fn call<Q: Clone, T>(
        &self,
        limit: Duration,
        again: Again,
        question: Q,
        ask: fn(Clients, Q) -> Asking<T>,
    ) -> Result<(T, Arc<Slot>), Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let slot = self.slot();
            let answer = timeout(limit, async {
                let clients = self.clients(&slot).await?;
                ask(clients, question.clone()).await
            });
            let failure = match answer.await {
                Ok(Ok(answer)) => {
                    self.went_well();
                    return Ok((answer, slot));
                }
                Ok(Err(error)) => Failure::from(error),
                Err(_) => Failure::timeout(limit),
            };
            let failure = failure.of(&slot.member);
            self.went_wrong(&slot, &failure);
            // A connection that broke may be made anew; one that is silent has had its time.
            let most = match failure.kind {
                ErrorKind::Timeout => self.0.members.len(),
                _ => self.0.members.len() + 1,
            };
            if tries >= most || !failure.may_try_again(again) {
                return Err(failure);
            }
        }
    }

    async fn clients(&self, slot: &Slot) -> Result<Clients, etcd_client::Error> {
        let connect = || self.connect(slot);
        slot.clients.get_or_try_init(connect).await.cloned()
    }

    async fn connect(&self, slot: &Slot) -> Result<Clients, etcd_client::Error> {
        let member = Instance::at(&*slot.member);
        let member = member.map_err(|e| etcd_client::Error::InvalidArgs(e.chain()))?;
        let options = ConnectOptions::default()
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let line = Line::to(member, self.0.dialer.clone(), self.0.runtime.clone());
        let channel = Channel::Custom(BoxCloneSyncService::new(line));
        let client = Client::from_channel(channel, Some(self.0.options.apply(options))).await?;
        Ok(Clients {
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            watch: client
                .watch_client()
                .max_decoding_message_size(LARGEST_ANSWER),
            lease: client.lease_client(),
        })
    }

    /// Runs a task where the connections live, wherever this is called.
    pub(crate) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) {
        self.0.runtime.spawn(task);
    }

    pub(super) fn read_limit(&self) -> Duration {
        self.0.options.read
    }

    pub(super) fn write_limit(&self) -> Duration {
        self.0.options.write
    }

    fn slot(&self) -> Arc<Slot> {
        Arc::clone(&locked(&self.0.slot))
    }

    fn went_well(&self) {
        let mut complaint = locked(&self.0.complaint);
        if complaint.times >= COMPLAIN_AT {
            tracing::info!(member = %self.slot().member, "etcd answers again");
        }
        complaint.times = 0;
    }

    /// Turns away from a member, unless somebody else did already.
    pub(super) fn went_wrong(&self, slot: &Arc<Slot>, failure: &Failure) {
        let next = match failure.remedy {
            Remedy::None | Remedy::Relist => None,
            Remedy::Renew => Some(slot.at),
            Remedy::Rotate | Remedy::Check => Some((slot.at + 1) % self.0.members.len()),
        };
        if let Some(at) = next {
            let mut current = locked(&self.0.slot);
            if Arc::ptr_eq(&current, slot) {
                *current = Slot::new(at, &self.0.members);
            }
        }
        self.complain(slot, failure);
    }

    /// Mistakes in certificates and passwords look like outages: say it aloud when one fails alike
    /// again and again.
    fn complain(&self, slot: &Slot, failure: &Failure) {
        if failure.remedy == Remedy::Relist || failure.kind == ErrorKind::Lost {
            return;
        }
        let mut complaint = locked(&self.0.complaint);
        if complaint.words != failure.words() {
            failure.words().clone_into(&mut complaint.words);
            complaint.times = complaint.times.min(COMPLAIN_AT);
            if complaint.times < COMPLAIN_AT {
                complaint.times = 0;
            }
        }
        complaint.times = complaint.times.saturating_add(1);
        if complaint.times == COMPLAIN_AT {
            let why = &complaint.words;
            tracing::warn!(member = %slot.member, kind = failure.kind.code(), why, "etcd keeps failing");
        }
    }
}

impl Slot {
    pub(super) fn member(&self) -> &Arc<str> {
        &self.member
    }

    fn new(at: usize, members: &[Arc<str>]) -> Arc<Self> {
        Arc::new(Self {
            at,
            member: members.get(at).map_or_else(|| "".into(), Arc::clone),
            clients: OnceCell::new(),
        })
    }
}

impl Inner {
    /// Whether the members are these, which are sorted.
    fn is_over(&self, sorted: &[Arc<str>]) -> bool {
        let mut members = self.members.clone();
        members.sort_unstable();
        members == sorted
    }
}

impl Failure {
    fn may_try_again(&self, again: Again) -> bool {
        match self.remedy {
            Remedy::None | Remedy::Relist | Remedy::Check => false,
            // Wrong credentials are as wrong on the next member.
            Remedy::Renew => self.kind != ErrorKind::Denied,
            Remedy::Rotate => {
                !matches!(self.kind, ErrorKind::Config | ErrorKind::Denied)
                    && (again == Again::Read || self.unsent)
            }
        }
    }
}

fn runtime() -> Result<Handle> {
    Handle::try_current().map_err(|error| {
        Error::config("etcd is asked from a Tokio runtime: open it inside of one").because(error)
    })
}

/// Refuses what is no member, and doubles.
fn checked<M: AsRef<str>>(members: &[M]) -> Result<Vec<Arc<str>>> {
    let mut checked: Vec<Arc<str>> = Vec::new();
    for member in members.iter().map(AsRef::as_ref) {
        let place = match member.parse::<crate::Address>() {
            Ok(crate::Address::Unix(_)) => {
                return Err(no_member(member, "a socket path is no member"));
            }
            Ok(place) => place.to_string(),
            // The text may be a URL with a password in it, so it is not shown.
            Err(_) if member.contains('@') => {
                return Err(Error::config(
                    "an etcd member has an `@`: give user and password on their own",
                ));
            }
            Err(error) => return Err(no_member(member, &error.to_string())),
        };
        if !checked.iter().any(|known| **known == *place) {
            checked.push(place.into());
        }
    }
    if checked.is_empty() {
        return Err(Error::config(
            "no etcd member was given: give at least one `host:port`",
        ));
    }
    Ok(checked)
}

fn no_member(member: &str, why: &str) -> Error {
    Error::config(format!("etcd member {member:?} cannot be used")).because(why.to_owned())
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("members", &self.0.members)
            .field("options", &self.0.options)
            .field("current", &self.slot().member)
            .finish()
    }
}

/// A whole page, or a batch of a watch that has fallen behind.
const LARGEST_ANSWER: usize = 64 << 20;
/// After as many failures alike, a person should hear of it.
const COMPLAIN_AT: u32 = 5;

#[cfg(test)]
mod tests {
    use etcd_client::Txn;

    use super::{super::kv::Span, *};

    #[tokio::test]
    async fn every_question_can_be_asked_from_a_task() {
        fn sent<T: Send>(_: T) {}
        let etcd = Etcd::open(&["127.0.0.1:1"], Options::default()).unwrap();

        sent(etcd.list(&Span::Key("a".into())));
        sent(etcd.txn("a", Txn::new()));
        sent(etcd.lease_grant(Duration::ZERO));
        sent(etcd.keep_alive(1));
        sent(etcd.watch(&Span::Key("a".into()), 1));
    }

    #[tokio::test]
    async fn members_are_checked_and_doubles_left_out() {
        let etcd = Etcd::open(&["a:1", "b:2", "a:1"], Options::default()).unwrap();

        assert_eq!(etcd.members().len(), 2);
        for (bad, why) in [("a", "port is missing"), ("unix:/x", "socket path")] {
            let error = Etcd::open(&[bad], Options::default()).unwrap_err();
            assert!(error.chain().contains(why), "{}", error.chain());
        }
        assert!(Etcd::open::<&str>(&[], Options::default()).is_err());
    }

    #[tokio::test]
    async fn secrets_are_never_shown() {
        let options = Options::default().user("root", "hunter2");
        let etcd = Etcd::open(&["127.0.0.1:1"], options).unwrap();
        let refused = Etcd::open(&["root:hunter2@h:1"], Options::default()).unwrap_err();

        let failed = etcd.list(&Span::Key("/a".into())).await.unwrap_err();
        let failed = failed.error("list /a");

        for text in [
            format!("{etcd:?}"),
            format!("{refused:?} {}", refused.chain()),
            format!("{failed:?} {}", failed.chain()),
        ] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn the_same_cluster_is_opened_once_and_forgotten_when_unused() {
        let first = Etcd::shared(&["a:1", "b:1"], Options::default()).unwrap();

        let same = Etcd::shared(&["b:1", "a:1"], Options::default()).unwrap();
        let other = Etcd::shared(&["a:1"], Options::default()).unwrap();
        let stranger = Etcd::shared(&["a:1", "b:1"], Options::default().user("u", "p")).unwrap();

        assert!(first.is(&same));
        assert!(!first.is(&other) && !first.is(&stranger));
    }

    #[test]
    fn another_runtime_gets_a_handle_of_its_own() {
        let open = || async { Etcd::shared(&["c:1"], Options::default()).unwrap() };
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
        };
        let (one, two) = (runtime(), runtime());

        let first = one.block_on(open());
        let second = two.block_on(open());

        assert!(!first.is(&second));
    }

    #[tokio::test]
    async fn one_who_refuses_is_left_for_the_next_at_once() {
        let etcd = Etcd::open(&["127.0.0.1:1", "127.0.0.1:2"], Options::default()).unwrap();
        let before = etcd.member();

        let error = etcd.txn("put /a", Txn::new()).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.chain().contains("refused"), "{}", error.chain());
        assert!(error.to_string().starts_with("put /a on etcd 127.0.0.1:"));
        // Both were tried, and the first once more, on another connection.
        assert_ne!(etcd.member(), before);
    }
}
