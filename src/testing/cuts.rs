//! What readers learn of a registry that is out of reach for a while.

use super::{
    Backend, Done, Stop,
    reader::Reader,
    stage::{Stage, ensure, instance, instances},
};

pub(super) async fn an_outage_keeps_the_set_and_its_end_is_told(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let set = instances(&["a", "b"])?;
    stage.put(&set).await?;
    let mut reader = stage.read();
    reader.knows(&set).await?;

    stage.cut().await?;
    reader.is_told_of_the_outage().await?;
    let kept = reader.known.len() == 2 && reader.suspects.is_empty();
    ensure(kept, || format!("in the outage: {}", reader.picture()))?;
    stage.heal().await?;

    reader.knows(&set).await?;
    stage.turn(&set, &instances(&["c"])?).await?;
    reader.knows(&instances(&["c"])?).await
}

pub(super) async fn a_cut_in_which_nothing_happens_is_stale_and_then_fresh(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let set = instances(&["a", "b", "c"])?;
    stage.put(&set).await?;
    let mut reader = stage.read();
    reader.knows(&set).await?;
    reader.told();

    for _ in 0..2 {
        stage.cut().await?;
        reader.is_told_of_the_outage().await?;
        stage.heal().await?;
        reader.knows(&set).await?;
    }

    let told = reader.told();
    let news = told.iter().find(|word| word.starts_with(['+', '-', '?']));
    ensure(news.is_none(), || {
        format!("nothing changed, and {told:?} was told")
    })
}

pub(super) async fn what_changes_in_a_cut_is_told_once_after_it(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let before = instances(&["changes", "goes", "stays"])?;
    stage.put(&before).await?;
    let mut reader = stage.read();
    reader.knows(&before).await?;
    reader.told();

    stage.cut().await?;
    reader.is_told_of_the_outage().await?;
    stage.put(&[instance("changes")?.weight(2)]).await?;
    stage.put(&instances(&["comes", "passes"])?).await?;
    stage.remove(&["goes", "passes"]).await?;
    stage.put(&[instance("changes")?.weight(3)]).await?;
    stage.heal().await?;
    let after = [
        instance("changes")?.weight(3),
        instance("comes")?,
        instance("stays")?,
    ];
    reader.knows(&after).await?;

    let told = reader.told();
    if told.iter().any(|word| word.starts_with("reset")) {
        // All of it was told anew, which nobody can take for a change.
        return Ok(());
    }
    for (word, most) in [("+changes", 2), ("+comes", 1), ("-goes", 1), ("+stays", 0)] {
        let times = told.iter().filter(|told| *told == word).count();
        ensure(times <= most, || {
            format!("{word} was told {times} times: {told:?}")
        })?;
    }
    Ok(())
}

pub(super) async fn cuts_amid_changes_lose_and_double_nothing(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let set = |weight| Ok::<_, Stop>([instance("a")?.weight(weight), instance("b")?]);
    stage.put(&set(1)?).await?;
    let mut reader = stage.read();
    reader.knows(&set(1)?).await?;

    let mut latest = 1;
    let mut holds = |reader: &Reader| {
        let a = reader.known.values().find(|i| i.id.as_str() == "a");
        let now = a.map_or(0, |a| a.weight);
        let was = std::mem::replace(&mut latest, now);
        ensure(now >= was, || {
            format!("a had the weight {was}, and then {now}")
        })
    };
    let mut weight = 1;
    for _ in 0..4 {
        reader.told();
        stage.cut().await?;
        for _ in 0..5 {
            weight += 1;
            stage.put(&[instance("a")?.weight(weight)]).await?;
        }
        // The reader may not even have noticed.
        stage.heal().await?;
        for _ in 0..5 {
            weight += 1;
            stage.put(&[instance("a")?.weight(weight)]).await?;
        }
        reader.knows_minding(&set(weight)?, &mut holds).await?;
        let told = reader.told();
        let doubled = told.iter().filter(|word| *word == "+a").count() > 10;
        let other = told
            .iter()
            .find(|word| word.ends_with('b') || word.starts_with(['-', '?']));
        ensure(!doubled && other.is_none(), || {
            format!("ten changes of a alone, and {told:?} was told")
        })?;
    }
    Ok(())
}

pub(super) async fn a_start_in_an_outage_is_stale_until_it_ends(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let set = instances(&["a"])?;
    stage.put(&set).await?;
    stage.cut().await?;
    let mut reader = stage.read();
    reader.is_told_of_the_outage().await?;

    stage.heal().await?;

    reader.knows(&set).await
}
