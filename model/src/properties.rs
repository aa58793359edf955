//! What the protocol promises, and the check that it keeps each promise and that the checker would notice if it did not.

use crate::{Breach, Caller, Flight, Kind, Protocol, Stage, State};
use stateright::Property;

fn always(name: &'static str, condition: fn(&Protocol, &State) -> bool) -> Property<Protocol> {
    Property::always(name, condition)
}

pub fn all() -> Vec<Property<Protocol>> {
    vec![
        always("a told image is there", |_, s| s.told.0 & !s.images.0 == 0),
        always("an image is paid once, and again after each take-over", |p, s| {
            let is_bounded = |payments: u8, successions: u8| payments <= 1 + successions;
            match (p.shared, p.keyed) {
                (false, _) => true,
                (true, true) => is_bounded(s.payments.iter().sum(), s.successions.iter().sum()),
                (true, false) => {
                    (0..s.payments.len()).all(|n| is_bounded(s.payments[n], s.successions[n]))
                }
            }
        }),
        always("a flight pays while it holds the lease", |_, s| {
            s.breach != Some(Breach::PaidWithoutHolding)
        }),
        always("the lease of a live holder does not expire", |p, s| {
            s.records.iter().flatten().all(|record| {
                let excused = |f: usize| !s.flights[f].must_keep_its_lease();
                p.overwrite_refused
                    || record.kind != Kind::Lease
                    || record.age <= p.life
                    || record.holder.is_none_or(excused)
            }) && s.breach != Some(Breach::TookFromLiving)
        }),
        always("a stored image is told", |_, s| s.breach != Some(Breach::StoredNotTold)),
        always("an owed image is told", |_, s| {
            let told = s.callers.iter().filter(|c| matches!(c, Caller::Told(_))).count();
            let has_ended = |f: &Flight| !f.is_running() || f.stage == Stage::Remembered;
            let ended = s.flights.iter().all(has_ended)
                && !s.callers.iter().any(|c| matches!(c, Caller::Waiting(_)));
            s.breach != Some(Breach::OwedNotTold)
                && (!ended || s.told.len() >= s.images.len().min(told as u32))
        }),
        always("a lease outlives its holder by its life and a tick at most", |_, s| {
            s.breach != Some(Breach::LeaseOutlivedHolder)
        }),
        always("a flight that ends unpaid leaves no lease", |_, s| {
            s.breach != Some(Breach::LeaseLeft)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Broken, Budget, Request};
    use stateright::{Checker, HasDiscoveries, Model};
    use std::time::Instant;

    fn three_users_of_a_key() -> Protocol {
        Protocol {
            keyed: true,
            shared: true,
            requests: vec![Request::default(); 3],
            life: 2,
            budget: Budget {
                silences: 1,
                freezes: 1,
                deaths: 1,
                cancels: 0,
                model_errors: 0,
                leaves: 0,
            },
            ..Protocol::default()
        }
    }

    fn explore(name: &str, protocol: Protocol) -> Vec<&'static str> {
        let start = Instant::now();
        let checker =
            protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!(
            "{name}: {} states, {} transitions, depth {}, {:.1} s",
            checker.unique_state_count(),
            checker.state_count(),
            checker.max_depth(),
            start.elapsed().as_secs_f32()
        );
        let mut found: Vec<_> = checker.discoveries().into_iter().collect();
        for (property, path) in &mut found {
            println!("  not kept: {property}");
            for action in path.clone().into_actions() {
                println!("    {action:?}");
            }
            println!(
                "    records {:?}, breach {:?}",
                path.last_state().records,
                path.last_state().breach
            );
        }
        found.into_iter().map(|(property, _)| property).collect()
    }

    #[test]
    fn key() {
        assert!(explore("key", three_users_of_a_key()).is_empty());
    }
}
