//! What a backend is held to, case by case.

use std::{any::Any, fmt, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::time::timeout;

use super::{Backend, Done, Stop, Verdict, Why, cuts, reading, registering, stage::Stage};

/// A case that hangs has failed after this time, whatever it waits for.
const LIMIT: Duration = Duration::from_secs(600);

/// How long a registry that a case left out of reach may take to come back.
const HEALING: Duration = Duration::from_secs(60);

/// The cases, each with the function that plays it.
macro_rules! cases {
    ($($(#[$doc:meta])+ $case:ident = $module:ident::$play:ident;)+) => {
        /// One thing that readers and servers rely on.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[non_exhaustive]
        pub enum Case {
            $($(#[$doc])+ $case,)+
        }

        impl Case {
            /// All of them, in the order in which they are worth looking at.
            pub const ALL: &'static [Self] = &[$(Self::$case),+];

            /// A stable word for it: its sentence with underscores.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$case => stringify!($play),)+
                }
            }

            async fn play<B: Backend>(self, stage: Stage<'_, B>) -> Done {
                match self {
                    $(Self::$case => Box::pin($module::$play(stage)).await,)+
                }
            }
        }
    };
}

cases! {
    /// The first update is the whole set.
    WholeSetFirst = reading::the_first_word_is_the_whole_set;
    /// A service without instances has an empty set; that is said, too.
    EmptySet = reading::nobody_is_an_empty_set_and_no_silence;
    /// Who comes, changes and leaves is told.
    ComingAndGoing = reading::what_comes_changes_and_leaves_is_told;
    /// A change of an instance is one `Put`: it does not leave meanwhile.
    UpdateInPlace = reading::an_update_in_place_is_no_leaving;
    /// After each update, the set is one that the registry had, and never an older one than before.
    Order = reading::changes_are_told_in_the_order_in_which_they_were_made;
    /// However often sets change, the last one is what is known.
    AnySeries = reading::any_series_of_sets_ends_where_the_registry_is;
    /// A set that is emptied on purpose is empty at once, and can be filled again.
    Emptied = reading::a_set_that_is_emptied_on_purpose_is_empty;
    /// Several readers, and late ones, know the same set.
    ManyReaders = reading::every_reader_learns_the_same;
    /// `greeter`, `greeter-v2` and `greeter/old` are three services.
    ServicesApart = reading::services_with_similar_names_do_not_mix;
    /// Services may be called anything that a `ServiceName` can be.
    OddServices = reading::odd_names_of_services_are_names;
    /// Ids arrive as they are, whatever stands in them.
    OddIds = reading::odd_ids_arrive_as_they_are;
    /// Who has an odd id changes and leaves as others do.
    OddIdsLeave = reading::odd_ids_change_and_leave_like_others;
    /// Zones, versions and tags arrive as they are, whatever stands in them.
    OddTexts = reading::odd_texts_arrive_as_they_are;
    /// The addresses of an instance arrive in their order.
    ManyAddresses = reading::several_addresses_arrive_in_their_order;
    /// A thousand instances are one update, and then one change is a change of one.
    Thousand = reading::a_thousand_instances_are_one_set;
    /// Who vanishes unannounced is a suspect, and nothing else when he is back.
    Vanishing = reading::who_vanishes_is_a_suspect_until_he_is_back;
    /// When all vanish at once, nobody is removed for it.
    Collapse = reading::a_set_that_collapses_is_suspected_and_not_gone;
    /// When nobody reads, nothing is left running.
    NothingLeftRunning = reading::nothing_runs_when_nobody_reads;
    /// An outage keeps the set, says why, and its end is told.
    Outage = cuts::an_outage_keeps_the_set_and_its_end_is_told;
    /// A cut in which nothing happens changes nothing.
    QuietCut = cuts::a_cut_in_which_nothing_happens_is_stale_and_then_fresh;
    /// What changed in a cut is told after it, once.
    ChangesInACut = cuts::what_changes_in_a_cut_is_told_once_after_it;
    /// Cuts amid changes lose none, double none and turn none around.
    CutsAmidChanges = cuts::cuts_amid_changes_lose_and_double_nothing;
    /// A start in an outage is stale until it ends.
    StartInAnOutage = cuts::a_start_in_an_outage_is_stale_until_it_ends;
    /// Who registers is found as he registered, and gone when he has left in order.
    Registered = registering::who_registers_is_found_and_leaves_in_order;
    /// Who is dropped leaves as one who was closed.
    Dropped = registering::who_is_dropped_leaves_in_order_as_well;
    /// An update of a registration is told, and the instance does not leave meanwhile.
    RegistrationUpdate = registering::what_a_registration_says_anew_is_told_in_place;
    /// The draining mark is told before anything else happens.
    DrainingMark = registering::a_draining_mark_is_told;
    /// One registration may stand in several services.
    SeveralServices = registering::one_registration_may_stand_in_several_services;
    /// Odd names and values are registered as they are.
    OddRegistrations = registering::odd_registrations_arrive_as_they_are;
    /// Whose session is lost has a new one, with nobody asking for it.
    LostSession = registering::a_lost_session_is_replaced;
    /// A living owner keeps his id; the other is told so.
    Conflict = registering::a_living_owner_keeps_his_id;
    /// What a registration says anew in a cut is told after it.
    UpdateInACut = registering::what_a_registration_says_in_a_cut_is_told_after_it;
    /// Who registers in a cut is found after it.
    BegunInACut = registering::who_registers_in_a_cut_is_found_after_it;
}

impl Case {
    /// Holds a backend to this case.
    pub async fn hold<B: Backend>(self, backend: &mut B) -> Verdict {
        let mut down = false;
        let stage = match Stage::new(backend, self.code(), &mut down) {
            Ok(stage) => stage,
            Err(error) => return Verdict::Failed(error.chain()),
        };
        let playing = AssertUnwindSafe(self.play(stage)).catch_unwind();
        let done = match timeout(LIMIT, playing).await {
            Err(_) => Err(Stop::failed(format!("not over in {LIMIT:?}"))),
            Ok(Err(panic)) => Err(Stop::failed(format!("it panicked: {}", words(&*panic)))),
            Ok(Ok(done)) => done,
        };
        if down {
            // The next case may have to do with the same registry, and finds out if this fails.
            let healing = AssertUnwindSafe(backend.heal()).catch_unwind();
            drop(timeout(HEALING, healing).await);
        }
        match done {
            Ok(()) => Verdict::Held,
            Err(Stop(Why::Cannot(why))) => Verdict::Skipped(why),
            Err(Stop(Why::Failed(what))) => Verdict::Failed(what),
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code().replace('_', " "))
    }
}
