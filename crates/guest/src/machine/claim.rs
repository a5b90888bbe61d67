//! Becoming somebody: `PUT /_atoll/identity`.

use super::{Machine, check_again, entropy, names::Names};
use crate::{
    http::{
        Guest,
        body::collect,
        connections::ConnectionId,
        reply::{Failure, Reply, empty},
    },
    role::Role,
    serve::start_command,
};
use api::{boot::MachineClaim, node::LogLevel};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::{io, rc::Rc};

/// No claim is longer.
const LONGEST: usize = 1 << 20;

/// Reads the claim and makes it hold. Between the two nothing else runs, so that of two claims
/// with the same token the second finds it worthless.
pub(super) async fn answer(
    guest: &Rc<Guest>,
    request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let (head, body) = request.into_parts();
    let body = collect(body, LONGEST).await;
    let body = body.map_err(|error| Failure::bad_request(error.to_string()))?;
    let claim: MachineClaim = serde_json::from_slice(&body)
        .map_err(|error| Failure::bad_request(format!("the claim is not understood: {error}")))?;
    check_again(guest, &head.headers)?;
    let Some(machine) = &guest.machine else {
        return Err(Failure::internal("this guest is not a machine's"));
    };
    if claim.identity.port != machine.port {
        let message = format!("the guest serves on port {} and cannot move", machine.port);
        return Err(Failure::bad_request(message));
    }
    take(guest, machine, &claim, head.extensions.get().copied())?;
    Ok(empty(StatusCode::NO_CONTENT))
}

fn take(
    guest: &Rc<Guest>,
    machine: &Machine,
    claim: &MachineClaim,
    connection: Option<ConnectionId>,
) -> Result<(), Failure> {
    // First of all: whatever comes after may ask for random numbers.
    let random = STANDARD.decode(claim.entropy.expose());
    let random = random.ok().filter(|bytes| bytes.len() >= entropy::LEAST);
    let random = random.ok_or_else(|| {
        let message = format!("the claim needs at least {} random bytes", entropy::LEAST);
        Failure::bad_request(message)
    })?;
    let failed =
        |what: &str, error: io::Error| Failure::internal(format!("cannot {what}: {error}"));
    entropy::mix(&random).map_err(|error| failed("mix entropy", error))?;
    set_clock(claim.unix_time_ns).map_err(|error| failed("set the clock", error))?;
    rustix::system::sethostname(claim.host_name.as_bytes())
        .map_err(|error| failed("set the host name", error.into()))?;

    if claim.renew {
        guest.connections.close_others(connection);
        guest.logs.clear();
        guest.processes.forget_output();
        guest.watchers.clear();
    }
    guest.role.replace(Rc::new(Role::from(&claim.identity)));
    write_names(guest, machine, claim);
    let command = claim.identity.start_command.as_deref();
    if command.is_some_and(|command| !command.is_empty()) && !machine.started.replace(true) {
        start_command(guest, command);
    }
    Ok(())
}

fn set_clock(unix_time_ns: u64) -> io::Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(unix_time_ns / SECOND).map_err(io::Error::other)?,
        tv_nsec: (unix_time_ns % SECOND) as _,
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// The files are the sandbox's own, and it may have made them unusable; that must not keep it
/// from being resumed.
fn write_names(guest: &Guest, machine: &Machine, claim: &MachineClaim) {
    let names = Names {
        host_name: claim.host_name.clone(),
        name_servers: claim.name_servers.clone(),
        search: claim.search.clone(),
    };
    let mut before = machine.names.borrow_mut();
    if let Err(error) = names.write(before.as_ref()) {
        let message = format!("cannot write the files of names in /etc: {error}");
        guest.logs.add(LogLevel::Error, message, &[]);
    }
    *before = Some(names);
}
