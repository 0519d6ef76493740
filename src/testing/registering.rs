//! What becomes of those who register, as readers see it.

use std::{io, time::Duration};

use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

use super::{
    Backend, Done, Stop,
    reader::Reader,
    stage::{Stage, ensure, instance},
};
use crate::{ErrorKind, Instance, Registration, register::State};

/// How long a registration may take to stand as it should.
const PATIENCE: Duration = Duration::from_secs(30);

fn server() -> Result<Instance, Stop> {
    Ok(instance("a")?
        .weight(3)
        .zone("z")
        .version("1")
        .tag("k", "v"))
}

pub(super) async fn who_registers_is_found_and_leaves_in_order(
    stage: Stage<'_, impl Backend>,
) -> Done {
    let mut reader = stage.read();
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;
    ensure(registration.state() == State::Registered, || {
        format!("it is found, and {}", registration.state())
    })?;
    stage.read().knows(&[server()?]).await?;
    reader.told();

    registration.close().await?;

    reader.knows(&[]).await?;
    nobody_was_suspected(reader.told())
}

pub(super) async fn who_is_dropped_leaves_in_order_as_well(stage: Stage<'_, impl Backend>) -> Done {
    let mut reader = stage.read();
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;
    reader.told();

    drop(registration);

    reader.knows(&[]).await?;
    nobody_was_suspected(reader.told())
}

fn nobody_was_suspected(told: Vec<String>) -> Done {
    let suspected = told.iter().find(|word| word.starts_with('?'));
    ensure(suspected.is_none(), || {
        format!("who left in order was a suspect: {told:?}")
    })
}

pub(super) async fn what_a_registration_says_anew_is_told_in_place(
    stage: Stage<'_, impl Backend>,
) -> Done {
    let mut reader = stage.read();
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;
    reader.told();

    // Some layouts take a weight of 1 for one that was not given.
    for weight in [7, 2, 9] {
        registration
            .update(|instance| instance.weight(weight))
            .await?;
        reader.knows(&[server()?.weight(weight)]).await?;
    }
    reader.nobody_left()?;

    let elsewhere = Instance::at("10.0.0.2:1")?.id("a")?.weight(5);
    registration.update(|_| elsewhere.clone()).await?;
    reader.knows(&[elsewhere]).await?;
    reader.nobody_left()?;
    Ok(registration.close().await?)
}

pub(super) async fn a_draining_mark_is_told(stage: Stage<'_, impl Backend>) -> Done {
    let mut reader = stage.read();
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;
    reader.told();

    registration.drain().await?;

    reader.knows(&[server()?.serving(false)]).await?;
    reader.nobody_left()?;
    ensure(registration.state() == State::Draining, || {
        format!("it drains, and is {}", registration.state())
    })?;
    Ok(registration.close().await?)
}

pub(super) async fn one_registration_may_stand_in_several_services(
    stage: Stage<'_, impl Backend>,
) -> Done {
    let second = stage.beside("-second")?;
    let (mut reader, mut other) = (stage.read(), stage.read_of(&second));
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;
    other.knows(&[]).await?;

    registration.also(&second).await?;
    other.knows(&[server()?]).await?;
    reader.knows(&[server()?]).await?;
    registration.close().await?;

    reader.knows(&[]).await?;
    other.knows(&[]).await
}

pub(super) async fn odd_registrations_arrive_as_they_are(stage: Stage<'_, impl Backend>) -> Done {
    let odd = [
        Instance::at("10.0.0.1:1")?.id("[::1]:50051")?,
        Instance::at("10.0.0.2:1")?
            .id("ünï©ode-\u{1f980}")?
            .zone("zürich/1"),
        Instance::at("10.0.0.3:1")?
            .id("a%2Fb")?
            .tag("k", "välue,=& \\ \"x\""),
        Instance::at("10.0.0.4:1")?
            .id("$&'()*+,;=@!~")?
            .version("<1>"),
    ]
    .map(|instance| instance.weight(2));
    let mut reader = stage.read();
    let mut all = Vec::new();
    for instance in &odd {
        all.push(stage.register(instance.clone()).await?);
    }

    reader.knows(&odd).await?;

    for registration in all {
        registration.close().await?;
    }
    reader.knows(&[]).await
}

pub(super) async fn a_lost_session_is_replaced(stage: Stage<'_, impl Backend>) -> Done {
    let mut reader = stage.read();
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;
    reader.told();

    let id = server()?.id;
    stage.backend.expire(&stage.service, &id).await?;

    // Nobody does anything for it, and it is there again.
    let again = |reader: &Reader| reader.heard("+a") || reader.heard("reset 1");
    reader.until("it is told again", again).await?;
    reader.knows(&[server()?]).await?;
    stands(&registration).await?;
    // What is written now stands on a session that lives.
    registration.update(|instance| instance.weight(8)).await?;
    reader.knows(&[server()?.weight(8)]).await?;
    Ok(registration.close().await?)
}

pub(super) async fn a_living_owner_keeps_his_id(stage: Stage<'_, impl Backend>) -> Done {
    // He lives who can be connected to.
    let failed = |error: io::Error| Stop::failed(format!("listen on 127.0.0.1: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let living = Instance::at(listener.local_addr().map_err(failed)?)?.id("a")?;
    let living = living.weight(2);
    let mut reader = stage.read();
    let registration = stage.register(living.clone()).await?;
    reader.knows(std::slice::from_ref(&living)).await?;
    reader.told();

    let stranger = Instance::at("10.9.9.9:1")?.id("a")?.weight(2);
    let registrar = stage.backend.registrar()?;
    let other = registrar.register(&stage.service, stranger.clone()).await;
    match other {
        Err(error) if error.kind() == ErrorKind::Conflict => {}
        Err(error) => return Err(Stop::failed(format!("no conflict, but {}", error.chain()))),
        Ok(other) => {
            let state = other.state();
            return Err(Stop::failed(format!(
                "two have one id, and the second is {state}"
            )));
        }
    }
    registration.update(|instance| instance.weight(4)).await?;
    reader.knows(&[living.weight(4)]).await?;
    reader.nobody_left()?;
    registration.close().await?;
    reader.knows(&[]).await?;

    let other = registrar.register(&stage.service, stranger.clone()).await?;
    reader.knows(&[stranger]).await?;
    Ok(other.close().await?)
}

pub(super) async fn what_a_registration_says_in_a_cut_is_told_after_it(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    let mut reader = stage.read();
    let registration = stage.register(server()?).await?;
    reader.knows(&[server()?]).await?;

    stage.cut().await?;
    let change = async {
        // Whether it is told of the outage, or still waits, the wish stays.
        let _ = registration.update(|instance| instance.weight(8)).await;
    };
    let mending = async {
        sleep(Duration::from_millis(500)).await;
        stage.heal().await
    };
    let ((), mended) = tokio::join!(change, mending);
    mended?;

    reader.knows(&[server()?.weight(8)]).await?;
    stands(&registration).await?;
    Ok(registration.close().await?)
}

pub(super) async fn who_registers_in_a_cut_is_found_after_it(
    mut stage: Stage<'_, impl Backend>,
) -> Done {
    // Whether there is a registrar at all is known before anything is broken.
    drop(stage.backend.registrar()?);
    stage.cut().await?;
    let registration = stage.register(server()?).await?;
    let state = registration.state();
    ensure(state != State::Registered, || {
        "it stands in a registry out of reach".into()
    })?;
    let mut reader = stage.read();
    reader.is_told_of_the_outage().await?;

    stage.heal().await?;

    reader.knows(&[server()?]).await?;
    stands(&registration).await?;
    Ok(registration.close().await?)
}

async fn stands(registration: &Registration) -> Done {
    let reached = timeout(PATIENCE, registration.until(State::Registered)).await;
    let late = || Stop::failed(format!("not registered in half a minute: {registration:?}"));
    Ok(reached.map_err(|_| late())??)
}
