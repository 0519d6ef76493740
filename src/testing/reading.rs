//! What readers learn while the registry is in reach.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    Backend, Done, Stop,
    reader::Reader,
    stage::{Stage, ensure, instance, instances},
};

pub(super) async fn the_first_word_is_the_whole_set(mut stage: Stage<'_, impl Backend>) -> Done {
    let set = [instance("a")?, instance("b")?.weight(3).zone("z")];
    stage.put(&set).await?;
    let mut reader = stage.read();

    reader.knows(&set).await?;

    told(&mut reader, &["reset 2"])
}

pub(super) async fn nobody_is_an_empty_set_and_no_silence(stage: Stage<'_, impl Backend>) -> Done {
    let mut reader = stage.read();

    reader.knows(&[]).await?;

    told(&mut reader, &["reset 0"])
}

/// What was told of servers. Any registry may be slow to answer on a machine that is busy, and is stale until then.
fn told(reader: &mut Reader, expected: &[&str]) -> Done {
    let mut told = reader.told();
    told.retain(|word| word != "stale" && word != "fresh");
    ensure(told == expected, || {
        format!("{told:?} was told instead of {expected:?}")
    })
}

pub(super) async fn what_comes_changes_and_leaves_is_told(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let mut before = instances(&["a", "b"])?;
    stage.put(&before).await?;
    let mut reader = stage.read();
    reader.knows(&before).await?;

    for set in [
        instances(&["a", "b", "c"])?,
        vec![
            instance("a")?.weight(7),
            instance("b")?.serving(false),
            instance("c")?,
        ],
        vec![instance("c")?.version("2")],
        vec![],
        instances(&["a"])?,
    ] {
        stage.turn(&before, &set).await?;
        reader.knows(&set).await?;
        before = set;
    }
    Ok(())
}

pub(super) async fn an_update_in_place_is_no_leaving(mut stage: Stage<'_, impl Backend>) -> Done {
    let other = instance("b")?;
    stage.put(&[instance("a")?, other.clone()]).await?;
    let mut reader = stage.read();
    reader.knows(&[instance("a")?, other.clone()]).await?;
    reader.told();

    for weight in 2..6 {
        let changed = instance("a")?
            .weight(weight)
            .tag("round", weight.to_string());
        stage.put(std::slice::from_ref(&changed)).await?;
        reader.knows(&[changed, other.clone()]).await?;
    }

    let told = reader.told();
    let others = told
        .iter()
        .find(|word| *word != "+a" && word.starts_with(['+', '-', '?']));
    ensure(others.is_none(), || {
        format!("{told:?} was told of changes to a alone")
    })
}

pub(super) async fn changes_are_told_in_the_order_in_which_they_were_made(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let at = |id: &str, weight| Ok::<_, Stop>(instance(id)?.weight(weight));
    stage.put(&[at("a", 1)?, at("b", 1)?]).await?;
    let mut reader = stage.read();
    reader.knows(&[at("a", 1)?, at("b", 1)?]).await?;

    let mut latest = (1, 1);
    let mut holds = |reader: &Reader| {
        let weight = |id: &str| reader.known.iter().find(|(i, _)| i.as_str() == id);
        let weight = |id: &str| weight(id).map_or(0, |(_, i)| i.weight);
        let now = (weight("a"), weight("b"));
        let was = std::mem::replace(&mut latest, now);
        // First a changes, then b: a is never behind, and never more than one ahead.
        let one = now.0 == now.1 || now.0 == now.1 + 1;
        ensure(one && now.0 >= was.0 && now.1 >= was.1, || {
            format!("a and b had the weights {was:?} and then {now:?}")
        })
    };
    for weight in 2..=25 {
        stage.put(&[at("a", weight)?]).await?;
        stage.put(&[at("b", weight)?]).await?;
        if weight % 5 == 0 {
            let set = [at("a", weight)?, at("b", weight)?];
            reader.knows_minding(&set, &mut holds).await?;
        }
    }
    Ok(())
}

pub(super) async fn any_series_of_sets_ends_where_the_registry_is(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let mut rng = StdRng::seed_from_u64(7);
    let mut before = instances(&["a"])?;
    stage.put(&before).await?;
    let mut reader = stage.read();
    reader.knows(&before).await?;
    for round in 0..40 {
        let ids = ["a", "b", "c", "d", "e"];
        let count = rng.random_range(0..=ids.len());
        let chosen = ids.sample(&mut rng, count);
        let set = chosen.map(|id| Ok(instance(id)?.weight(1 + round % 3)));
        let set = set.collect::<Result<Vec<_>, Stop>>()?;
        stage.turn(&before, &set).await?;
        // Sometimes it looks only after several changes.
        if rng.random_ratio(1, 3) {
            reader.knows(&set).await?;
        }
        before = set;
    }
    let last = instances(&["z"])?;
    stage.turn(&before, &last).await?;

    reader.knows(&last).await
}

pub(super) async fn a_set_that_is_emptied_on_purpose_is_empty(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let ids = ["a", "b", "c", "d", "e"];
    stage.put(&instances(&ids)?).await?;
    let mut reader = stage.read();
    reader.knows(&instances(&ids)?).await?;
    reader.told();

    stage.remove(&ids).await?;
    reader.knows(&[]).await?;
    let told = reader.told();
    let suspected = told.iter().find(|word| word.starts_with('?'));
    ensure(suspected.is_none(), || {
        format!("who left on purpose is a suspect: {told:?}")
    })?;
    stage.put(&instances(&["b"])?).await?;

    reader.knows(&instances(&["b"])?).await
}

pub(super) async fn every_reader_learns_the_same(mut stage: Stage<'_, impl Backend>) -> Done {
    stage.put(&instances(&["a"])?).await?;
    let (mut first, mut second) = (stage.read(), stage.read());
    first.knows(&instances(&["a"])?).await?;
    second.knows(&instances(&["a"])?).await?;
    drop(first);

    stage.put(&instances(&["b"])?).await?;
    let mut late = stage.read();

    let set = instances(&["a", "b"])?;
    second.knows(&set).await?;
    late.knows(&set).await
}

pub(super) async fn services_with_similar_names_do_not_mix(stage: Stage<'_, impl Backend>) -> Done {
    apart(stage, &["", "-v2", "/old", "/old/er", "X"]).await
}

pub(super) async fn odd_names_of_services_are_names(stage: Stage<'_, impl Backend>) -> Done {
    let long = format!("-{}", "n".repeat(180));
    let odd = [
        "/grüße",
        "-\u{1f980}",
        "%2F",
        "/127.0.0.1:50051",
        "/$&'()*+,;=@!~",
        "/\"<>\"",
    ];
    let odd: Vec<_> = odd.into_iter().chain([long.as_str()]).collect();
    apart(stage, &odd).await
}

/// Each of these services has one instance, and no other's.
async fn apart(stage: Stage<'_, impl Backend>, endings: &[&str]) -> Done {
    let mut services = Vec::new();
    for (nth, ending) in endings.iter().enumerate() {
        let service = stage.beside(ending)?;
        let server = instance(&format!("s{nth}"))?;
        stage
            .backend
            .put(&service, std::slice::from_ref(&server))
            .await?;
        services.push((service, server));
    }
    let mut readers = Vec::new();
    for (service, server) in &services {
        let mut reader = stage.read_of(service);
        reader.knows(std::slice::from_ref(server)).await?;
        readers.push(reader);
    }

    for ((service, server), reader) in services.iter().zip(&mut readers) {
        let changed = server.clone().weight(2);
        stage
            .backend
            .put(service, std::slice::from_ref(&changed))
            .await?;
        reader.knows(&[changed]).await?;
    }
    for ((service, server), reader) in services.iter().zip(&mut readers) {
        reader.now()?;
        let own = reader.known.len() == 1 && reader.known.contains_key(&server.id);
        ensure(own, || {
            format!("{service} has others': {}", reader.picture())
        })?;
    }
    Ok(())
}

const ODD: [&str; 6] = [
    "127.0.0.1:50051",
    "[::1]:1",
    "ünï©ode-\u{1f980}",
    "a%2Fb",
    "$&'()*+,;=@!~",
    "{\"}<>",
];

pub(super) async fn odd_ids_arrive_as_they_are(mut stage: Stage<'_, impl Backend>) -> Done {
    let set = instances(&ODD)?;
    stage.put(&set).await?;

    stage.read().knows(&set).await
}

pub(super) async fn odd_ids_change_and_leave_like_others(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    stage.put(&instances(&ODD)?).await?;
    let mut reader = stage.read();
    reader.knows(&instances(&ODD)?).await?;

    let mut set = instances(&ODD[..3])?;
    set[2].weight = 7;
    stage.put(&set).await?;
    stage.remove(&ODD[3..]).await?;

    reader.knows(&set).await
}

pub(super) async fn odd_texts_arrive_as_they_are(mut stage: Stage<'_, impl Backend>) -> Done {
    let set = [
        instance("a")?.zone("zürich/1").version("<1> \u{1f980}"),
        instance("b")?
            .tag("k\"ey", "välue,=& \\ \"x\"")
            .tag("", "")
            .tag("K\"EY", "\u{2028}"),
        instance("c")?
            .zone(" ")
            .tag("x".repeat(300), "y".repeat(4000)),
        instance("d")?.weight(0).server_name("elsewhere.example"),
    ];
    stage.put(&set).await?;

    stage.read().knows(&set).await
}

pub(super) async fn several_addresses_arrive_in_their_order(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let set = [
        instance("a")?
            .also_at("[fe80::1]:1")?
            .also_at("10.0.0.1:1")?,
        instance("b")?
            .also_at("unix:/run/a b.sock")?
            .also_at("greeter.svc:65535")?,
    ];
    stage.put(&set).await?;

    stage.read().knows(&set).await
}

pub(super) async fn a_thousand_instances_are_one_set(mut stage: Stage<'_, impl Backend>) -> Done {
    let all = (0..1000).map(|n| instance(&format!("i{n:04}")));
    let mut set = all.collect::<Result<Vec<_>, _>>()?;
    stage.put(&set).await?;
    let mut reader = stage.read();
    reader.knows(&set).await?;
    told(&mut reader, &["reset 1000"])?;

    stage.remove(&["i0500"]).await?;
    set.remove(500);
    reader.knows(&set).await?;
    stage.put(&[instance("i0007")?.weight(9)]).await?;
    set[7].weight = 9;

    reader.knows(&set).await
}

pub(super) async fn who_vanishes_is_a_suspect_until_he_is_back(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let ids = ["a", "b", "c"];
    stage.put(&instances(&ids)?).await?;
    let mut reader = stage.read();
    reader.knows(&instances(&ids)?).await?;

    stage.vanish(&["b"]).await?;
    reader
        .until("b alone is a suspect", |reader| {
            reader.suspects.iter().map(|id| id.as_str()).eq(["b"])
        })
        .await?;
    ensure(reader.known.len() == 3, || reader.picture())?;
    stage.put(&instances(&["b"])?).await?;

    reader.knows(&instances(&ids)?).await
}

pub(super) async fn a_set_that_collapses_is_suspected_and_not_gone(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h"];
    stage.put(&instances(&ids)?).await?;
    let mut reader = stage.read();
    reader.knows(&instances(&ids)?).await?;

    stage.vanish(&ids).await?;
    reader
        .until("all are suspects", |reader| {
            reader.suspects.len() == ids.len()
        })
        .await?;
    ensure(reader.known.len() == ids.len(), || reader.picture())?;
    stage.put(&instances(&ids)?).await?;

    reader.knows(&instances(&ids)?).await
}

pub(super) async fn nothing_runs_when_nobody_reads(stage: Stage<'_, impl Backend>) -> Done {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    // Its connection to the registry, which may stay, is there from then on.
    stage.read().knows(&[]).await?;
    // What the cases before this one left behind may be ending still.
    let mut before = tasks();
    loop {
        sleep(Duration::from_millis(300)).await;
        if std::mem::replace(&mut before, tasks()) == before {
            break;
        }
    }
    let mut readers = Vec::new();
    for nth in 0..8 {
        let service = stage.beside(&format!("-{}", nth % 4))?;
        let mut reader = stage.read_of(&service);
        reader.knows(&[]).await?;
        readers.push(reader);
    }

    drop(readers);

    let ended = async {
        while tasks() > before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = timeout(Duration::from_secs(30), ended).await;
    ended.map_err(|_| {
        let left = tasks() - before;
        Stop::failed(format!(
            "{left} tasks run half a minute after the last of 8 readers left"
        ))
    })
}
