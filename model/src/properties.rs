//! What the protocol promises. The tests explore every state, and show that the checker notices
//! each broken rule.

use crate::{Breach, Caller, Flight, Kind, Protocol, Stage, State};
use stateright::Property;

pub const TOLD_IS_THERE: &str = "a told image is there";
pub const PAID_ONCE: &str = "an image is paid once, and again after each take-over";
pub const PAID_WHILE_HOLDING: &str = "a flight pays while it holds the lease";
pub const KEPT_WHILE_LIVING: &str = "the lease of a live holder does not expire";
pub const STORED_IS_TOLD: &str = "a stored image is told";
pub const OWED_IS_TOLD: &str = "an owed image is told";
pub const OVER_IN_TIME: &str = "a lease outlives its holder by its life and a tick at most";
pub const RELEASED_IF_UNPAID: &str = "a flight that ends unpaid leaves no lease";

fn always(name: &'static str, condition: fn(&Protocol, &State) -> bool) -> Property<Protocol> {
    Property::always(name, condition)
}

pub fn all() -> Vec<Property<Protocol>> {
    vec![
        always(TOLD_IS_THERE, |_, s| s.told.0 & !s.images.0 == 0),
        always(PAID_ONCE, |p, s| {
            let is_bounded = |payments: u8, successions: u8| payments <= 1 + successions;
            match (p.shared, p.keyed) {
                (false, _) => true,
                (true, true) => is_bounded(s.payments.iter().sum(), s.successions.iter().sum()),
                (true, false) => {
                    (0..s.payments.len()).all(|n| is_bounded(s.payments[n], s.successions[n]))
                }
            }
        }),
        always(PAID_WHILE_HOLDING, |_, s| s.breach != Some(Breach::PaidWithoutHolding)),
        always(KEPT_WHILE_LIVING, |p, s| {
            s.records.iter().flatten().all(|record| {
                let excused = |f: usize| !s.flights[f].must_keep_its_lease();
                p.overwrite_refused
                    || record.kind != Kind::Lease
                    || record.age <= p.life
                    || record.holder.is_none_or(excused)
            }) && s.breach != Some(Breach::TookFromLiving)
        }),
        always(STORED_IS_TOLD, |_, s| s.breach != Some(Breach::StoredNotTold)),
        always(OWED_IS_TOLD, |p, s| {
            let told = s.callers.iter().filter(|c| matches!(c, Caller::Told(_))).count();
            let has_ended = |f: &Flight| !f.is_running() || f.stage == Stage::Remembered;
            let ended = s.flights.iter().all(has_ended)
                && !s.callers.iter().any(|c| matches!(c, Caller::Waiting(_)));
            s.breach != Some(Breach::OwedNotTold)
                && (p.keyed
                    || p.window.is_some()
                    || p.budget.deaths + p.budget.cancels > 0
                    || !ended
                    || s.told.len() >= s.images.len().min(told as u32))
        }),
        always(OVER_IN_TIME, |_, s| s.breach != Some(Breach::LeaseOutlivedHolder)),
        always(RELEASED_IF_UNPAID, |_, s| s.breach != Some(Breach::LeaseLeft)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Broken, Budget, Request};
    use stateright::{Checker, HasDiscoveries, Model};
    use std::time::Instant;

    fn key(budget: Budget) -> Protocol {
        let requests = vec![Request::default(); 3];
        Protocol { keyed: true, shared: true, requests, life: 2, budget, ..Protocol::default() }
    }

    /// The account may neither overwrite nor delete.
    fn key_without_overwriting(budget: Budget) -> Protocol {
        Protocol { overwrite_refused: true, deadline: 3, ..key(budget) }
    }

    fn key_without_date(budget: Budget) -> Protocol {
        Protocol { dateless: true, ..key(budget) }
    }

    /// Two requests fired together, each with a retry on another instance.
    fn variants(budget: Budget) -> Protocol {
        let retry = |of| Request { retry_of: Some(of) };
        let requests = vec![Request::default(), Request::default(), retry(0), retry(1)];
        Protocol { shared: true, requests, life: 2, budget, ..Protocol::default() }
    }

    fn variants_on_one_instance(budget: Budget) -> Protocol {
        Protocol { shared: false, ..variants(budget) }
    }

    const NO_FAULTS: Budget =
        Budget { silences: 0, freezes: 0, deaths: 0, cancels: 0, model_errors: 0, leaves: 0 };
    const SILENCE: Budget = Budget { silences: 1, ..NO_FAULTS };
    const CANCEL: Budget = Budget { cancels: 1, model_errors: 1, ..SILENCE };
    const FREEZE: Budget = Budget { freezes: 1, ..SILENCE };
    const DEATH: Budget = Budget { deaths: 1, ..FREEZE };
    const STOPS: Budget = Budget { freezes: 1, ..NO_FAULTS };
    const LEAVE: Budget = Budget { leaves: 2, ..NO_FAULTS };

    /// Explores every state, and returns the promises that are not kept.
    fn explore(name: &str, protocol: Protocol) -> Vec<&'static str> {
        let symmetry = match protocol.keyed {
            true => State::of_equal_requests,
            false => State::of_two_variants,
        };
        let start = Instant::now();
        let checker = protocol
            .checker()
            .symmetry_fn(symmetry)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_dfs()
            .join();
        report(name, &checker, start);
        for (promise, path) in checker.discoveries() {
            let state = path.last_state();
            println!(
                "    not kept: {promise}: {:?}",
                (state.breach, state.images, state.told, state.callers)
            );
        }
        checker.discoveries().into_keys().collect()
    }

    /// Looks for the shortest way to break a promise.
    fn break_promise(name: &str, protocol: Protocol, promise: &'static str) -> bool {
        let start = Instant::now();
        let checker = protocol
            .checker()
            .finish_when(HasDiscoveries::AnyOf([promise].into()))
            .spawn_bfs()
            .join();
        report(name, &checker, start);
        let Some(path) = checker.discovery(promise) else { return false };
        println!("    not kept: {promise}");
        for action in path.into_actions() {
            println!("        {action:?}");
        }
        true
    }

    fn report(name: &str, checker: &impl Checker<Protocol>, start: Instant) {
        println!(
            "{name}: {} states, {} transitions, depth {}, {:.1} s",
            checker.unique_state_count(),
            checker.state_count(),
            checker.max_depth(),
            start.elapsed().as_secs_f32()
        );
    }

    /// If this variable is set, the test explores the large configurations whose names contain its value.
    /// Each takes minutes.
    const LARGE: &str = "IGA_MODEL_LARGE";

    #[test]
    fn every_promise_is_kept() {
        let mut configurations = vec![
            ("key: cancel", key(CANCEL)),
            ("key: freeze", key(FREEZE)),
            ("key: freeze and death", key(DEATH)),
            ("key, overwriting refused: freeze", key_without_overwriting(STOPS)),
            ("key, no Date: freeze", key_without_date(FREEZE)),
            ("variants", variants(LEAVE)),
            ("variants on one instance", variants_on_one_instance(LEAVE)),
        ];
        let freeze_and_death = Budget { silences: 0, ..DEATH };
        if let Ok(wanted) = std::env::var(LARGE) {
            configurations = vec![
                ("key: two freezes", key(Budget { freezes: 2, ..FREEZE })),
                ("key: two silences", key(Budget { silences: 2, ..FREEZE })),
                ("key: cancel and death", key(Budget { deaths: 1, ..CANCEL })),
                ("key: a longer life", Protocol { life: 3, ..key(DEATH) }),
                ("key, overwriting refused: silence", key_without_overwriting(SILENCE)),
                ("key, overwriting refused: death", key_without_overwriting(freeze_and_death)),
                ("key, no Date: freeze and death", key_without_date(DEATH)),
                ("variants, receipts expire", Protocol { window: Some(2), ..variants(LEAVE) }),
                ("variants: model error", variants(Budget { model_errors: 1, ..LEAVE })),
                ("variants: silence", variants(Budget { silences: 1, ..LEAVE })),
                ("variants: freeze", variants(Budget { freezes: 1, ..LEAVE })),
                ("variants: death", variants(Budget { deaths: 1, ..LEAVE })),
                ("variants: cancel", variants(Budget { cancels: 1, ..LEAVE })),
            ];
            configurations.retain(|(name, _)| name.contains(&wanted));
            assert!(!configurations.is_empty(), "no configuration is called {wanted}");
        }
        for (name, protocol) in configurations {
            let found = explore(name, protocol.clone());
            for promise in &found {
                break_promise(name, protocol.clone(), promise);
            }
            assert_eq!(found, Vec::<&str>::new(), "{name}");
        }
    }

    #[test]
    fn every_broken_rule_is_found() {
        use Broken::*;
        let freeze_and_death = Budget { silences: 0, ..DEATH };
        let freeze_and_error = Budget { freezes: 1, model_errors: 1, ..NO_FAULTS };
        let leave_and_error = Budget { model_errors: 1, ..LEAVE };
        for (broken, protocol, promise) in [
            (ReleaseAfterStoring, key(CANCEL), STORED_IS_TOLD),
            (ReleaseAfterPaying, key(CANCEL), PAID_ONCE),
            (DeleteDuplicate, key(Budget { silences: 0, ..FREEZE }), TOLD_IS_THERE),
            (PayWithoutHolding, key(FREEZE), PAID_WHILE_HOLDING),
            (HoldFromResponse, key(FREEZE), PAID_WHILE_HOLDING),
            (HoldFromLastTry, key(FREEZE), PAID_WHILE_HOLDING),
            (TakeOverInDoubt, key(FREEZE), PAID_WHILE_HOLDING),
            (TakeOverWithoutLooking, key(DEATH), STORED_IS_TOLD),
            (FreshNameOnTakeOver, key(freeze_and_death), STORED_IS_TOLD),
            (ReleaseDeletes, key(freeze_and_error), STORED_IS_TOLD),
            (ReleaseDeletes, variants(leave_and_error), OWED_IS_TOLD),
            (DoubtIsVariant, variants(LEAVE), OWED_IS_TOLD),
            (VariantByLeaseAge, variants(LEAVE), OWED_IS_TOLD),
            (ReceiptFailureFailsRequest, key(CANCEL), STORED_IS_TOLD),
            (RenewalStopsDuringUpload, key(FREEZE), KEPT_WHILE_LIVING),
            (RenewalStopsDuringReceipt, key(FREEZE), KEPT_WHILE_LIVING),
            (ReleaseOnce, key(CANCEL), RELEASED_IF_UNPAID),
            (AcquireLeavesLease, key(CANCEL), RELEASED_IF_UNPAID),
            (JoinRenews, variants(Budget { deaths: 1, ..LEAVE }), OVER_IN_TIME),
            (JoinLeast, variants(LEAVE), OWED_IS_TOLD),
            (JoinLeast, variants_on_one_instance(LEAVE), OWED_IS_TOLD),
            (ClaimWithoutName, variants(LEAVE), OWED_IS_TOLD),
            (FirstFreeSlot, variants(leave_and_error), OWED_IS_TOLD),
            (SucceedAtLeaseLife, key_without_overwriting(DEATH), KEPT_WHILE_LIVING),
        ] {
            let protocol = Protocol { broken: Some(broken), ..protocol };
            assert!(break_promise(&format!("{broken:?}"), protocol, promise), "{broken:?}");
        }
    }
}
