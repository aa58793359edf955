//! A specification of the protocol by which instances agree which of them pays for an image, as a
//! model whose every interleaving can be explored.
//!
//! Each *flight* runs on an instance of its own and shares only the store with the others. A write is
//! sent, then applied, then gets its response. The response may be lost, and a write without a
//! response may be applied later or never. A flight may be slow, freeze, die, or be cancelled between
//! any two steps. Time is a count of ticks, one renewal period each; any number of steps fit between
//! two ticks. A live flight renews its lease in every tick in which it is due, because record calls
//! are bounded well below a tick; a frozen flight does nothing.
//!
//! A take-over inherits the image's name, and nothing is deleted: a release is a write. The switches
//! of [`Broken`] undo one rule each.
//!
//! The model leaves out the bytes, the admission (whether the bucket accepts objects at all),
//! generation permits and retries of reads. Reading a record and looking for its image are one step;
//! so are a conflict and the read that follows it.

use stateright::{Model, Property};

/// At most so many requests, each with a flight of its own.
pub const FLIGHTS: usize = 4;
/// Records under one name: the first and its successors.
pub const SLOTS: usize = 3;

pub type Id = usize;

/// A configuration to explore.
#[derive(Clone, Debug, Default)]
pub struct Protocol {
    /// Requests with one idempotency key; otherwise equal requests without a key.
    pub keyed: bool,
    /// Flights agree through records. Otherwise all requests reach one instance, without leases.
    pub shared: bool,
    /// The account may not overwrite or delete objects.
    pub overwrite_refused: bool,
    /// Responses have no `Date`: an age counts from when the flight first saw the generation.
    pub dateless: bool,
    pub requests: Vec<Request>,
    /// The lease's life, in ticks.
    pub life: u8,
    /// How many ticks a flight may take, where that matters: without overwriting.
    pub deadline: u8,
    /// How many ticks a receipt is valid without a key.
    pub window: Option<u8>,
    pub budget: Budget,
    pub broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// The caller of that request has left and asks again, the variant age after it first asked.
    pub retry_of: Option<Id>,
}

/// How many faults of each kind a run may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Budget {
    /// Writes and uploads that get no response.
    pub silences: u8,
    pub freezes: u8,
    pub deaths: u8,
    /// SIGTERM, a deadline or a panic.
    pub cancels: u8,
    pub model_errors: u8,
    /// Callers that leave before they are told.
    pub leaves: u8,
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A record is deleted although its image is stored, when the receipt fails.
    ReleaseAfterStoring,
    /// A lease is released although its image was paid and may yet be stored.
    ReleaseAfterPaying,
    /// A late holder deletes its image when it finds another's receipt.
    DeleteDuplicate,
    /// The model is called without checking the clock.
    PayWithoutHolding,
    /// The life of a lease counts from the response to its last write, not from its sending.
    HoldFromResponse,
    /// The life of an acquired lease counts from the last of several tries.
    HoldFromLastTry,
    /// A lease is taken over when it may have expired, not when it surely has.
    TakeOverInDoubt,
    TakeOverWithoutLooking,
    /// After a take-over, the image is stored under a new name.
    FreshNameOnTakeOver,
    /// A release deletes the record.
    ReleaseDeletes,
    /// A lease of uncertain age counts as a variant's.
    DoubtIsVariant,
    /// A lease's age counts from its write, not from when its caller asked.
    VariantByLeaseAge,
    ReceiptFailureFailsRequest,
    RenewalStopsDuringUpload,
    RenewalStopsDuringReceipt,
    /// A release is tried once, although the store may respond with 429.
    ReleaseOnce,
    /// A cancelled acquire leaves what it may have written.
    AcquireLeavesLease,
    /// The write of a joining flight resets the age of the lease.
    JoinRenews,
    /// Equal requests join the first flight, or the one with the fewest joins, even if another owes an
    /// image.
    JoinLeast,
    /// A claim has no name, so its flight does not recognise it after a lost response.
    ClaimWithoutName,
    /// A slot is created or replaced before the later ones are read.
    FirstFreeSlot,
    /// A record that cannot be overwritten is succeeded as soon as its lease has expired.
    SucceedAtLeaseLife,
}

/// A promise that a step has broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breach {
    PaidWithoutHolding,
    /// A caller got an error for an image that is stored, or another image was paid for it.
    StoredNotTold,
    /// A retry paid although a variant's image was owed.
    OwedNotTold,
    /// A waiting flight saw a lease older than its life and a tick, and did not take it over.
    LeaseOutlivedHolder,
    /// A flight ended unpaid and left its lease.
    LeaseLeft,
    /// A record was succeeded while its holder was alive.
    TookFromLiving,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub records: [Option<Record>; SLOTS],
    /// Images in the bucket, by the flight that chose the name.
    pub images: Set,
    /// Images that a caller was told of.
    pub told: Set,
    pub callers: [Caller; FLIGHTS],
    pub flights: [Flight; FLIGHTS],
    pub payments: [u8; SLOTS],
    /// Leases taken over from holders silent for longer than a lease, and receipts replaced.
    pub successions: [u8; SLOTS],
    pub budget: Budget,
    pub breach: Option<Breach>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(pub u8);

impl Set {
    pub fn has(self, id: Id) -> bool {
        self.0 & (1 << id) != 0
    }
    fn insert(&mut self, id: Id) {
        self.0 |= 1 << id;
    }
    fn remove(&mut self, id: Id) {
        self.0 &= !(1 << id);
    }
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Lease,
    /// A lease whose holder paid nothing and gave it back.
    Released,
    Receipt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    pub kind: Kind,
    /// The flight that holds the lease, if it is still running.
    pub holder: Option<Id>,
    /// The name under which the image is stored.
    pub name: Id,
    /// Ticks since this generation was written.
    pub age: u8,
    /// The age before the last write by another flight than the holder (`aged_ms`).
    pub carried: u8,
    pub renewed: bool,
    /// How long ago its caller had asked when the lease was acquired; 0 or 1.
    pub asked: u8,
    pub owed: bool,
    /// The running flight whose claim ended that it was owed.
    pub claimant: Option<Id>,
    /// How long the holder may live after its write.
    pub ends: u8,
    /// Ticks since the holder's own last write, less what rounding at joins has lost.
    pub silent: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caller {
    NotYet,
    /// Waits for the outcome of this flight.
    Waiting(Id),
    Told(Id),
    Failed,
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flight {
    pub stage: Stage,
    pub slot: usize,
    pub name: Id,
    /// The record write under way, and one that got no response and may still be applied.
    pub wire: Option<Write>,
    pub late: Option<Write>,
    /// The name under which an upload without a response may still be applied.
    pub late_upload: Option<Id>,
    /// Ticks since the last confirmed write of the lease was sent.
    pub held_for: u8,
    /// Knows the record's generation.
    pub knows: bool,
    /// Another flight has the record: nothing is renewed any more.
    pub lost: bool,
    pub frozen: bool,
    /// Had a reason to miss a renewal: it was frozen, or a write got no response.
    pub excused: bool,
    /// Ticks since its caller asked.
    pub age: u8,
    /// Ticks since it first saw the generation it waits for.
    pub seen_for: Option<u8>,
    /// Ticks since the first try to acquire that got no response.
    pub doubt_for: Option<u8>,
    /// Its caller has left, and the record does not say so yet.
    pub owes: bool,
    pub paid: bool,
    /// The store did not respond to a release.
    pub release_doubt: bool,
    /// An image was stored before its caller asked.
    pub asked_after_stored: bool,
    /// The slot whose image was owed when its caller asked.
    pub owed_when_asked: Option<usize>,
    pub joins: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    NotBegun,
    /// Acquires the lease, or waits for the image of another flight.
    Acquiring,
    /// Holds the lease and has not paid.
    Unpaid,
    /// Waits for the model.
    Calling,
    /// Has an image that is not confirmed in the bucket.
    Paid,
    /// The image is confirmed, the caller not told.
    Stored,
    /// The caller is told; the receipt is not confirmed.
    Recording,
    /// Found an image in an expired lease and told its caller; writes the receipt once.
    WritingReceipt,
    Releasing,
    Done,
    /// Done, and remembers its image (without records).
    Remembered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WriteKind {
    Create,
    TakeOver,
    Renew,
    Receipt,
    Release,
    Claim,
}

/// The precondition of a write: what must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IfGeneration {
    Nothing,
    /// The generation that is there now.
    Current,
    /// A generation that is gone for ever.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    pub kind: WriteKind,
    pub slot: usize,
    pub if_generation: IfGeneration,
    pub name: Id,
    pub owed: bool,
    /// The age to write into the record.
    pub carried: u8,
    pub sent_for: u8,
    /// The response that the sender has not read yet, because it was frozen.
    pub response: Option<Response>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Response {
    Confirmed,
    Conflict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A request arrives and begins a flight.
    Ask(Id),
    /// A request joins a flight of its instance.
    Join {
        request: Id,
        flight: Id,
    },
    /// Reads the records and judges them; `rounded` takes each age as a tick too small.
    ReadRecords {
        flight: Id,
        rounded: bool,
    },
    /// Sends the first write of an acquire again, without reading its result.
    Resend(Id),
    /// The store applies the flight's write if the precondition holds, and responds.
    Serve(Id),
    /// The store applies the write, and the response is lost.
    ServeSilently(Id),
    /// No response comes; the write may be applied later or never.
    Delay(Id),
    /// 429: the record was written in this tick.
    TooMany(Id),
    ApplyLate(Id),
    Renew(Id),
    /// Checks the clock and calls the model.
    Call(Id),
    ModelResponds(Id),
    ModelFails {
        flight: Id,
        retry: bool,
    },
    Upload(Id),
    UploadSilently(Id),
    DelayUpload(Id),
    ApplyLateUpload(Id),
    /// The lease is held: the caller is told at once.
    Tell(Id),
    /// The lease is not surely held: the record is read first, if the store responds.
    ReadThenTell {
        flight: Id,
        responds: bool,
    },
    SendReceipt(Id),
    SendRelease(Id),
    GiveUpRelease(Id),
    Leave(Id),
    Cancel(Id),
    Deadline(Id),
    Die(Id),
    Freeze(Id),
    Thaw(Id),
    Tick,
}

impl Record {
    /// Surely older than the variant age.
    fn is_a_retrys(&self) -> bool {
        self.kind == Kind::Receipt || self.renewed || self.asked + self.age + self.carried > 0
    }
}

impl Flight {
    const NEW: Flight = Flight {
        stage: Stage::NotBegun,
        slot: 0,
        name: 0,
        wire: None,
        late: None,
        late_upload: None,
        held_for: 0,
        knows: false,
        lost: false,
        frozen: false,
        excused: false,
        age: 0,
        seen_for: None,
        doubt_for: None,
        owes: false,
        paid: false,
        release_doubt: false,
        asked_after_stored: false,
        owed_when_asked: None,
        joins: 0,
    };

    pub fn is_running(&self) -> bool {
        !matches!(self.stage, Stage::NotBegun | Stage::Done | Stage::Remembered)
    }

    /// What distinguishes it from other flights, without naming any.
    fn shape(&self) -> impl Ord + Copy + use<> {
        let wire = self.wire.map(|write| (write.kind, write.if_generation, write.sent_for));
        let late = self.late.map(|write| (write.kind, write.if_generation));
        (self.stage, self.held_for, self.frozen, wire, late)
    }

    /// It holds a lease and has no excuse for letting the lease expire.
    pub fn must_keep_its_lease(&self) -> bool {
        self.holds_record() && !self.lost && !self.excused && !self.frozen
    }

    fn holds_record(&self) -> bool {
        matches!(
            self.stage,
            Stage::Unpaid | Stage::Calling | Stage::Paid | Stage::Stored | Stage::Recording
        )
    }
}

/// What a record means for a flight that reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Mine,
    /// Its image is stored; `settled` unless the record must still be turned into a receipt.
    Image {
        settled: bool,
    },
    Variant,
    Alive,
    /// Expired, released or replaceable, and no image is there.
    Free,
}

impl Protocol {
    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    fn cap(&self) -> u8 {
        self.life.max(if self.overwrite_refused { self.deadline } else { 0 }) + 2
    }

    // ---- The store

    /// Applies a write if its precondition holds.
    fn apply(&self, s: &mut State, by: Id, write: &Write) -> Response {
        let slot = write.slot;
        let before = s.records[slot];
        match write.if_generation {
            IfGeneration::Nothing if before.is_none() => {}
            IfGeneration::Current if before.is_some() => {}
            _ => return Response::Conflict,
        }
        let sender = &s.flights[by];
        let holder = sender.is_running().then_some(by);
        let lease = Record {
            kind: Kind::Lease,
            holder,
            name: write.name,
            age: 0,
            carried: 0,
            renewed: false,
            asked: sender.age.min(1),
            owed: write.owed,
            claimant: None,
            ends: self.deadline.saturating_sub(sender.age),
            silent: 0,
        };
        let after = match (write.kind, before) {
            (WriteKind::Create, _) => Some(lease),
            (WriteKind::TakeOver, Some(old)) => {
                for flight in &mut s.flights {
                    flight.owed_when_asked = flight.owed_when_asked.filter(|&owed| owed != slot);
                }
                if old.kind == Kind::Lease || old.kind == Kind::Receipt {
                    s.successions[slot] += 1;
                }
                Some(lease)
            }
            (WriteKind::Renew, Some(old)) => Some(Record {
                age: 0,
                carried: 0,
                silent: 0,
                renewed: true,
                owed: old.owed || write.owed,
                ..old
            }),
            (WriteKind::Claim, Some(old)) => {
                let carried = if self.is(Broken::JoinRenews) { 0 } else { write.carried };
                // The joining flight rounds down the age that it writes: that much is lost.
                let lost = (old.carried + old.age).saturating_sub(write.carried);
                let silent = old.silent.saturating_sub(lost);
                let (renewed, owed, claimant) = (true, false, holder);
                Some(Record { age: 0, carried, silent, renewed, owed, claimant, ..old })
            }
            (WriteKind::Receipt, _) => Some(Record {
                kind: Kind::Receipt,
                holder: None,
                name: write.name,
                owed: write.owed,
                claimant: before.and_then(|old| old.claimant),
                renewed: false,
                asked: 0,
                ends: 0,
                ..lease
            }),
            (WriteKind::Release, Some(_))
                if self.is(Broken::ReleaseDeletes) || self.is(Broken::ReleaseAfterStoring) =>
            {
                None
            }
            (WriteKind::Release, Some(old)) => Some(Record {
                kind: Kind::Released,
                holder: None,
                age: 0,
                carried: 0,
                renewed: false,
                asked: 0,
                owed: false,
                ends: 0,
                silent: 0,
                ..old
            }),
            (_, None) => return Response::Conflict,
        };
        s.records[slot] = after;
        for flight in &mut s.flights {
            for pending in [&mut flight.wire, &mut flight.late] {
                if let Some(other) = pending
                    && other.slot == slot
                    && other.if_generation == IfGeneration::Current
                {
                    other.if_generation = IfGeneration::Gone;
                }
            }
            // It can never be applied.
            if flight.late.is_some_and(|late| late.if_generation == IfGeneration::Gone) {
                flight.late = None;
            }
            if flight.slot == slot {
                flight.knows = false;
                flight.seen_for = None;
            }
        }
        Response::Confirmed
    }

    fn send(
        &self,
        s: &mut State,
        f: Id,
        kind: WriteKind,
        slot: usize,
        if_generation: IfGeneration,
        name: Id,
    ) {
        let owed = s.flights[f].owes;
        s.flights[f].wire = Some(Write {
            kind,
            slot,
            if_generation,
            name,
            owed,
            carried: 0,
            sent_for: 0,
            response: None,
        });
    }

    // ---- Acquire

    /// The least age that a record can have, as far as the flight knows.
    fn low(&self, record: &Record, flight: &Flight, rounded: bool) -> u8 {
        if self.dateless {
            return record.carried + flight.seen_for.unwrap_or(0).min(record.age);
        }
        record.carried + record.age.saturating_sub(u8::from(rounded))
    }

    fn judge(&self, s: &State, f: Id, record: &Record, rounded: bool) -> View {
        let flight = &s.flights[f];
        let low = self.low(record, flight, rounded);
        let is_there = s.images.has(record.name);
        match record.kind {
            Kind::Receipt if self.window.is_some_and(|window| low > window) => View::Free,
            Kind::Receipt if is_there => View::Image { settled: true },
            Kind::Released if is_there => View::Image { settled: false },
            Kind::Receipt | Kind::Released => View::Free,
            Kind::Lease if record.holder == Some(f) && flight.doubt_for.is_some() => View::Mine,
            Kind::Lease => {
                let young = if self.is(Broken::DoubtIsVariant) {
                    low == 0
                } else {
                    record.age + record.carried == 0 && !rounded && !self.dateless
                };
                let fresh = record.asked == 0
                    || self.is(Broken::VariantByLeaseAge)
                    || self.is(Broken::DoubtIsVariant);
                if !self.keyed && !record.renewed && young && fresh {
                    return View::Variant;
                }
                let expired = match self.is(Broken::TakeOverInDoubt) {
                    true => low + 1 >= self.life,
                    false => low > self.life,
                };
                let looks =
                    if expired { !self.is(Broken::TakeOverWithoutLooking) } else { low >= 1 };
                match (looks && is_there, expired) {
                    (true, _) => View::Image { settled: !expired },
                    (false, true) => View::Free,
                    (false, false) => View::Alive,
                }
            }
        }
    }

    /// Reads the records up to the first that is missing, and acts on them.
    fn read_records(&self, s: &mut State, f: Id, rounded: bool) {
        let first = if self.keyed { s.flights[f].slot } else { 0 };
        s.flights[f].seen_for.get_or_insert(0);
        let mut seen = [None; SLOTS];
        for (slot, seen) in seen.iter_mut().enumerate().skip(first) {
            let Some(record) = &s.records[slot] else { break };
            *seen = Some(self.judge(s, f, record, rounded));
            if *seen == Some(View::Mine) {
                let doubt = s.flights[f].doubt_for.unwrap_or(0);
                return self.hold(s, f, slot, record.name, doubt);
            }
            if self.keyed {
                break;
            }
        }
        let slots =
            |wanted: fn(View) -> bool| (first..SLOTS).find(|&slot| seen[slot].is_some_and(wanted));
        let is_image = |view| matches!(view, View::Image { .. });
        let joinable = |view| matches!(view, View::Image { .. } | View::Alive);
        let of_records = |wanted: &dyn Fn(&Record) -> bool| {
            (first..SLOTS).find(|&slot| {
                seen[slot].is_some_and(joinable) && s.records[slot].as_ref().is_some_and(wanted)
            })
        };
        let claimed = of_records(&|record| self.is_claimed_by(record, f));
        let owed = of_records(&|record| record.owed);
        let free = slots(|view| view == View::Free);
        if self.is(Broken::FirstFreeSlot)
            && let Some(slot) = free
            && seen[..slot].iter().flatten().all(|&view| view == View::Variant)
        {
            return self.take_over(s, f, slot, rounded);
        }
        // An image that it has claimed, one that is owed, one that a dead holder left, any other;
        // then a slot to take.
        if let Some(slot) = owed
            && claimed.is_none()
            && !self.is(Broken::JoinLeast)
            && !self.overwrite_refused
        {
            let record = s.records[slot].expect("it was read");
            let carried = self.low(&record, &s.flights[f], rounded);
            self.send(s, f, WriteKind::Claim, slot, IfGeneration::Current, record.name);
            s.flights[f].wire.as_mut().expect("it was sent").carried = carried;
            return;
        }
        let unsettled = slots(|view| view == View::Image { settled: false });
        if let Some(slot) = claimed.or(unsettled).or_else(|| slots(joinable)) {
            let record = s.records[slot].expect("it was read");
            s.flights[f].slot = slot;
            if !seen[slot].is_some_and(is_image) {
                // It waits.
                if record.silent >= self.life + 2 && !self.dateless {
                    s.breach = Some(Breach::LeaseOutlivedHolder);
                }
                return;
            }
            self.tell(s, f, record.name);
            if seen[slot] == Some(View::Image { settled: false }) && !self.overwrite_refused {
                s.flights[f].stage = Stage::WritingReceipt;
                self.send(s, f, WriteKind::Receipt, slot, IfGeneration::Current, record.name);
                return;
            }
            return self.end(s, f);
        }
        if let Some(slot) = free {
            return self.take_over(s, f, slot, rounded);
        }
        let missing = (first..SLOTS).find(|&slot| s.records[slot].is_none());
        if let Some(slot) = missing {
            s.flights[f].slot = slot;
            self.send_acquire(s, f, WriteKind::Create, slot, IfGeneration::Nothing, f);
        }
    }

    fn is_claimed_by(&self, record: &Record, f: Id) -> bool {
        record.claimant == Some(f) && !self.is(Broken::ClaimWithoutName)
    }

    fn take_over(&self, s: &mut State, f: Id, slot: usize, rounded: bool) {
        let record = s.records[slot].expect("it was read");
        s.flights[f].slot = slot;
        if self.overwrite_refused {
            let limit = if self.is(Broken::SucceedAtLeaseLife) { self.life } else { record.ends };
            if self.low(&record, &s.flights[f], rounded) > limit && slot + 1 < SLOTS {
                s.flights[f].slot = slot + 1;
                self.send_acquire(s, f, WriteKind::Create, slot + 1, IfGeneration::Nothing, f);
            }
            return;
        }
        // The name is inherited, so that a late upload of the last holder is found.
        let is_used = s.images.has(record.name) && !self.is(Broken::TakeOverWithoutLooking);
        let name = if is_used
            || self.is(Broken::FreshNameOnTakeOver)
            || self.is(Broken::DeleteDuplicate)
        {
            f
        } else {
            record.name
        };
        self.send_acquire(s, f, WriteKind::TakeOver, slot, IfGeneration::Current, name);
    }

    fn send_acquire(
        &self,
        s: &mut State,
        f: Id,
        kind: WriteKind,
        slot: usize,
        if_generation: IfGeneration,
        name: Id,
    ) {
        if self.is(Broken::HoldFromLastTry) && s.flights[f].doubt_for.is_some() {
            s.flights[f].doubt_for = Some(0);
        }
        self.send(s, f, kind, slot, if_generation, name);
    }

    fn hold(&self, s: &mut State, f: Id, slot: usize, name: Id, held_for: u8) {
        let flight = &mut s.flights[f];
        flight.stage = Stage::Unpaid;
        flight.slot = slot;
        flight.name = name;
        flight.held_for = held_for;
        flight.knows = true;
        flight.lost = false;
        flight.excused = held_for > 0;
        flight.doubt_for = None;
        flight.seen_for = None;
    }

    // ---- Responses

    fn handle_response(&self, s: &mut State, f: Id, write: &Write, response: Response) {
        let sent_for = if self.is(Broken::HoldFromResponse) { 0 } else { write.sent_for };
        let flight = s.flights[f];
        let record = s.records[write.slot];
        let is_mine = record.is_some_and(|r| r.kind == Kind::Lease && r.holder == Some(f));
        s.flights[f].wire = None;
        match (write.kind, response) {
            (WriteKind::Create | WriteKind::TakeOver, Response::Confirmed) => {
                let current = is_mine;
                self.hold(s, f, write.slot, write.name, sent_for);
                s.flights[f].knows = current;
                if write.owed {
                    s.flights[f].owes = false;
                }
            }
            (WriteKind::Create | WriteKind::TakeOver, Response::Conflict) => {
                s.flights[f].seen_for = None;
            }
            (WriteKind::Renew, Response::Confirmed) => {
                let flight = &mut s.flights[f];
                flight.held_for = sent_for;
                flight.excused = sent_for > 0 || flight.frozen;
                flight.knows = is_mine;
                if write.owed {
                    flight.owes = false;
                }
            }
            (WriteKind::Renew, Response::Conflict) if is_mine => s.flights[f].knows = true,
            (WriteKind::Renew, Response::Conflict) => match flight.stage {
                // Unpaid: it waits for the image of the flight that has the lease now.
                Stage::Unpaid => {
                    s.flights[f].stage = Stage::Acquiring;
                    s.flights[f].excused = false;
                    s.flights[f].held_for = 0;
                }
                _ => s.flights[f].lost = true,
            },
            (WriteKind::Receipt, response) => {
                if flight.stage == Stage::Stored {
                    self.tell(s, f, flight.name);
                    s.flights[f].stage = Stage::Recording;
                }
                let is_settled = record.is_some_and(|r| r.kind == Kind::Receipt);
                if response == Response::Confirmed {
                    self.tell(s, f, flight.name);
                }
                if response == Response::Confirmed
                    || is_settled
                    || flight.stage == Stage::WritingReceipt
                {
                    return self.end(s, f);
                }
                if self.is(Broken::ReleaseAfterStoring) {
                    s.flights[f].stage = Stage::Releasing;
                    s.flights[f].knows = is_mine;
                    return;
                }
                s.flights[f].knows = true;
            }
            (WriteKind::Release, Response::Conflict) if is_mine => s.flights[f].knows = true,
            (WriteKind::Release, _) => self.end(s, f),
            (WriteKind::Claim, _) => {}
        }
    }

    fn handle_silence(&self, s: &mut State, f: Id, write: &Write) {
        let flight = &mut s.flights[f];
        flight.wire = None;
        flight.excused = true;
        match write.kind {
            WriteKind::Create | WriteKind::TakeOver => {
                let doubt = flight.doubt_for.unwrap_or(0).max(write.sent_for);
                flight.doubt_for = Some(doubt);
            }
            WriteKind::Renew => {}
            WriteKind::Receipt => match flight.stage {
                Stage::WritingReceipt => self.end(s, f),
                Stage::Stored => {
                    let name = flight.name;
                    self.tell(s, f, name);
                    s.flights[f].stage = Stage::Recording;
                }
                _ if self.is(Broken::ReleaseAfterStoring) => flight.stage = Stage::Releasing,
                _ if self.is(Broken::ReceiptFailureFailsRequest) => self.fail(s, f),
                _ => {}
            },
            WriteKind::Release => flight.release_doubt = true,
            WriteKind::Claim => {}
        }
    }

    // ---- Outcomes

    fn tell(&self, s: &mut State, f: Id, name: Id) {
        for caller in &mut s.callers {
            if *caller == Caller::Waiting(f) {
                *caller = Caller::Told(name);
                s.told.insert(name);
            }
        }
    }

    fn fail(&self, s: &mut State, f: Id) {
        let is_stored = matches!(s.flights[f].stage, Stage::Stored | Stage::Recording);
        for caller in &mut s.callers {
            if *caller == Caller::Waiting(f) {
                *caller = Caller::Failed;
                if is_stored {
                    s.breach = Some(Breach::StoredNotTold);
                }
            }
        }
    }

    /// The flight is over; its writes without a response may still be applied.
    fn end(&self, s: &mut State, f: Id) {
        let flight = s.flights[f];
        let keeps = flight.paid || flight.release_doubt || self.overwrite_refused;
        for record in s.records.iter_mut().flatten() {
            if record.holder == Some(f) {
                record.holder = None;
                if record.kind == Kind::Lease && !keeps && !s.images.has(record.name) {
                    s.breach = Some(Breach::LeaseLeft);
                }
            }
        }
        self.vanish(s, f);
    }

    fn vanish(&self, s: &mut State, f: Id) {
        let flight = s.flights[f];
        let wire = flight
            .wire
            .filter(|write| write.response.is_none() && write.if_generation != IfGeneration::Gone);
        s.flights[f] = Flight {
            stage: Stage::Done,
            late: flight.late.or(wire),
            late_upload: flight.late_upload.filter(|&name| !s.images.has(name)),
            age: flight.age.min(1),
            ..Flight::NEW
        };
        for record in s.records.iter_mut().flatten() {
            for id in [&mut record.holder, &mut record.claimant] {
                *id = id.filter(|&id| id != f);
            }
        }
    }

    /// Stops a flight wherever it is.
    fn cancel(&self, s: &mut State, f: Id) {
        let stage = s.flights[f].stage;
        if let Some(write) = s.flights[f].wire.take() {
            if write.response.is_none()
                && write.if_generation != IfGeneration::Gone
                && s.flights[f].late.is_none()
            {
                s.flights[f].late = Some(write);
            }
            if matches!(write.kind, WriteKind::Create | WriteKind::TakeOver) {
                let doubt = s.flights[f].doubt_for.unwrap_or(0).max(write.sent_for);
                s.flights[f].doubt_for = Some(doubt);
            }
        }
        match stage {
            Stage::Acquiring => {
                self.fail(s, f);
                match s.flights[f].doubt_for {
                    Some(_) if !self.is(Broken::AcquireLeavesLease) => {
                        s.flights[f].stage = Stage::Releasing;
                        s.flights[f].knows = false;
                    }
                    _ => self.end(s, f),
                }
            }
            Stage::Unpaid | Stage::Calling => {
                self.fail(s, f);
                s.flights[f].stage = Stage::Releasing;
            }
            Stage::Paid => {
                self.fail(s, f);
                match self.is(Broken::ReleaseAfterPaying) {
                    true => s.flights[f].stage = Stage::Releasing,
                    false => self.end(s, f),
                }
            }
            Stage::Stored => {
                let name = s.flights[f].name;
                self.tell(s, f, name);
                self.end(s, f);
            }
            Stage::Recording if self.is(Broken::ReleaseAfterStoring) => {
                s.flights[f].stage = Stage::Releasing;
            }
            _ => self.end(s, f),
        }
    }

    // ---- Hold

    fn is_leased(&self) -> bool {
        self.shared
    }

    /// By the flight's own clock. A lease that cannot be renewed is held until the deadline.
    fn is_held(&self, flight: &Flight) -> bool {
        !self.is_leased() || self.overwrite_refused || (!flight.lost && flight.held_for < self.life)
    }

    fn renews(&self, flight: &Flight) -> bool {
        let stops = (self.is(Broken::RenewalStopsDuringReceipt)
            && flight.stage == Stage::Recording)
            || (self.is(Broken::RenewalStopsDuringUpload) && flight.stage == Stage::Paid);
        self.is_leased()
            && !self.overwrite_refused
            && flight.holds_record()
            && !flight.lost
            && !flight.frozen
            && !stops
    }

    /// Whether a live flight still has to act in this tick.
    fn is_due(&self, flight: &Flight) -> bool {
        if flight.frozen || !flight.is_running() {
            return false;
        }
        if self.overwrite_refused && flight.age >= self.deadline {
            return true;
        }
        self.renews(flight) && (flight.held_for >= 1 || flight.wire.is_some())
    }

    // ---- Without records: one instance

    fn owes(&self, s: &State, f: Id) -> bool {
        let has_caller = s.callers.contains(&Caller::Waiting(f));
        !has_caller && !s.told.has(f)
    }

    /// The flight of this instance that an equal request joins.
    fn joinable(&self, s: &State) -> Option<Id> {
        (0..FLIGHTS)
            .filter(|&f| s.flights[f].age >= 1)
            .filter(|&f| s.flights[f].is_running() || s.flights[f].stage == Stage::Remembered)
            .min_by_key(|&f| {
                let paid_less = self.is(Broken::JoinLeast) || !self.owes(s, f);
                (paid_less, s.flights[f].joins)
            })
    }

    fn begin(&self, s: &mut State, r: Id) {
        s.callers[r] = Caller::Waiting(r);
        s.flights[r].name = r;
        if !self.is_leased() {
            s.flights[r].stage = Stage::Unpaid;
            return;
        }
        let names_stored = |record: &Record| s.images.has(record.name);
        s.flights[r].asked_after_stored =
            self.keyed && s.records.iter().flatten().any(names_stored);
        if self.requests[r].retry_of.is_some() {
            s.flights[r].owed_when_asked =
                (0..SLOTS).find(|&slot| s.records[slot].is_some_and(|r| r.owed && r.is_a_retrys()));
        }
        s.flights[r].stage = Stage::Acquiring;
        self.send(s, r, WriteKind::Create, 0, IfGeneration::Nothing, r);
    }

    fn may_ask(&self, s: &State, r: Id) -> bool {
        if s.callers[r] != Caller::NotYet {
            return false;
        }
        match self.requests[r].retry_of {
            // Requests that begin alike are interchangeable: they begin in order.
            None => (0..r).all(|earlier| {
                self.requests[earlier].retry_of.is_some() || s.callers[earlier] != Caller::NotYet
            }),
            Some(first) => {
                let flight = &s.flights[first];
                // It asks later than the write which says that its caller has left.
                s.callers[first] == Caller::Left
                    && flight.age >= 1
                    && !flight.owes
                    && flight.stage != Stage::Acquiring
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            records: [None; SLOTS],
            images: Set(0),
            told: Set(0),
            callers: [Caller::NotYet; FLIGHTS],
            flights: [Flight::NEW; FLIGHTS],
            payments: [0; SLOTS],
            successions: [0; SLOTS],
            budget: self.budget,
            breach: None,
        }]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if s.breach.is_some() {
            return;
        }
        for f in 0..self.requests.len() {
            self.actions_of(s, f, actions);
        }
        if s.flights.iter().any(Flight::is_running) && !s.flights.iter().any(|f| self.is_due(f)) {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut after = before.clone();
        self.step(&mut after, action);
        (after != *before).then_some(after)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::properties::all()
    }
}

impl Protocol {
    fn actions_of(&self, s: &State, f: Id, actions: &mut Vec<Action>) {
        use Action::*;
        let flight = &s.flights[f];
        let budget = &s.budget;
        if let Some(late) = &flight.late
            && (late.if_generation == IfGeneration::Current || s.records[late.slot].is_none())
        {
            actions.push(ApplyLate(f));
        }
        if flight.late_upload.is_some() {
            actions.push(ApplyLateUpload(f));
        }
        if self.may_ask(s, f) {
            match self.joinable(s) {
                Some(flight) if !self.is_leased() => actions.push(Join { request: f, flight }),
                _ => actions.push(Ask(f)),
            }
        }
        if !flight.is_running() {
            return;
        }
        // A flight that only waits may be slow: freezing or dying adds nothing.
        let only_waits =
            flight.stage == Stage::Acquiring && flight.wire.is_none() && flight.doubt_for.is_none();
        if budget.deaths > 0 && !only_waits {
            actions.push(Die(f));
        }
        if let Some(write) = flight.wire
            && write.response.is_none()
        {
            actions.push(Serve(f));
            if budget.silences > 0 && !flight.frozen {
                actions.push(ServeSilently(f));
                if flight.late.is_none() {
                    actions.push(Delay(f));
                }
            }
            // Any other write is sent again in the same tick.
            let is_busy = s.records[write.slot].is_some_and(|record| record.age == 0);
            if write.kind == WriteKind::Release && is_busy {
                actions.push(TooMany(f));
            }
        }
        if flight.frozen {
            actions.push(Thaw(f));
            return;
        }
        if budget.freezes > 0 && !only_waits {
            actions.push(Freeze(f));
        }
        if budget.cancels > 0 && flight.stage != Stage::Releasing && !only_waits {
            actions.push(Cancel(f));
        }
        if self.overwrite_refused && flight.age >= self.deadline {
            actions.push(Deadline(f));
        }
        if budget.leaves > 0 && s.callers[f] == Caller::Waiting(f) {
            actions.push(Leave(f));
        }
        let idle = flight.wire.is_none();
        if self.renews(flight) && idle && (flight.held_for >= 1 || flight.owes) {
            actions.push(Renew(f));
        }
        match flight.stage {
            Stage::Acquiring if idle => {
                actions.push(ReadRecords { flight: f, rounded: false });
                actions.push(ReadRecords { flight: f, rounded: true });
                if flight.doubt_for.is_some() {
                    actions.push(Resend(f));
                }
            }
            Stage::Unpaid if self.is_held(flight) || self.is(Broken::PayWithoutHolding) => {
                actions.push(Call(f));
            }
            Stage::Calling => {
                actions.push(ModelResponds(f));
                if budget.model_errors > 0 {
                    actions.push(ModelFails { flight: f, retry: true });
                    actions.push(ModelFails { flight: f, retry: false });
                }
            }
            Stage::Paid => {
                actions.push(Upload(f));
                if budget.silences > 0 && !s.images.has(flight.name) {
                    actions.push(UploadSilently(f));
                    actions.push(DelayUpload(f));
                }
            }
            Stage::Stored if self.is_held(flight) => actions.push(Tell(f)),
            Stage::Stored if idle => {
                actions.push(ReadThenTell { flight: f, responds: true });
                if budget.silences > 0 {
                    actions.push(ReadThenTell { flight: f, responds: false });
                }
            }
            Stage::Recording if idle => actions.push(SendReceipt(f)),
            Stage::Releasing if idle => {
                actions.push(SendRelease(f));
                if flight.release_doubt {
                    actions.push(GiveUpRelease(f));
                }
            }
            _ => {}
        }
    }

    fn step(&self, s: &mut State, action: Action) {
        match action {
            Action::Ask(r) => self.begin(s, r),
            Action::Join { request, flight } => {
                s.callers[request] = Caller::Waiting(flight);
                s.flights[flight].joins += 1;
                if s.flights[flight].stage == Stage::Remembered {
                    self.tell(s, flight, flight);
                }
            }
            Action::ReadRecords { flight, rounded } => self.read_records(s, flight, rounded),
            Action::Resend(f) => {
                let slot = s.flights[f].slot;
                self.send_acquire(s, f, WriteKind::Create, slot, IfGeneration::Nothing, f);
            }
            Action::Serve(f) => {
                let write = s.flights[f].wire.expect("a write is on the wire");
                let response = self.apply(s, f, &write);
                self.count_succession(s, &write, response);
                match s.flights[f].frozen {
                    true => s.flights[f].wire.as_mut().expect("as above").response = Some(response),
                    false => self.handle_response(s, f, &write, response),
                }
            }
            Action::ServeSilently(f) => {
                s.budget.silences -= 1;
                let write = s.flights[f].wire.expect("a write is on the wire");
                let response = self.apply(s, f, &write);
                self.count_succession(s, &write, response);
                self.handle_silence(s, f, &write);
            }
            Action::Delay(f) => {
                s.budget.silences -= 1;
                let write = s.flights[f].wire.expect("a write is on the wire");
                if write.if_generation != IfGeneration::Gone {
                    s.flights[f].late = Some(write);
                }
                self.handle_silence(s, f, &write);
            }
            Action::TooMany(f) => {
                if self.is(Broken::ReleaseOnce) {
                    s.flights[f].wire = None;
                    self.end(s, f);
                }
            }
            Action::ApplyLate(f) => {
                let write = s.flights[f].late.take().expect("a write is late");
                let response = self.apply(s, f, &write);
                self.count_succession(s, &write, response);
            }
            Action::Renew(f) => {
                let flight = s.flights[f];
                let if_generation =
                    if flight.knows { IfGeneration::Current } else { IfGeneration::Gone };
                self.send(s, f, WriteKind::Renew, flight.slot, if_generation, flight.name);
            }
            Action::Call(f) => {
                let flight = &mut s.flights[f];
                flight.stage = Stage::Calling;
                if self.is_leased() {
                    let record = s.records[flight.slot];
                    let is_mine = record.is_some_and(|r| r.holder == Some(f));
                    // A late holder may have told its image meanwhile.
                    let is_settled = record.is_some_and(|r| r.kind == Kind::Receipt);
                    if !is_mine && !is_settled {
                        s.breach = Some(Breach::PaidWithoutHolding);
                    }
                    if flight.asked_after_stored {
                        s.breach = Some(Breach::StoredNotTold);
                    }
                    if let Some(slot) = flight.owed_when_asked
                        && slot != flight.slot
                        && s.records[slot].is_some_and(|record| {
                            let has_expired = self.window.is_some_and(|window| record.age > window);
                            record.owed && !(record.kind == Kind::Receipt && has_expired)
                        })
                    {
                        s.breach = Some(Breach::OwedNotTold);
                    }
                }
            }
            Action::ModelResponds(f) => {
                let flight = &mut s.flights[f];
                flight.stage = Stage::Paid;
                flight.paid = true;
                s.payments[flight.slot] += 1;
            }
            Action::ModelFails { flight: f, retry } => {
                s.budget.model_errors -= 1;
                if retry {
                    s.flights[f].stage = Stage::Unpaid;
                } else {
                    self.cancel(s, f);
                }
            }
            Action::Upload(f) => {
                let flight = &mut s.flights[f];
                flight.stage = Stage::Stored;
                s.images.insert(flight.name);
            }
            Action::UploadSilently(f) => {
                s.budget.silences -= 1;
                s.images.insert(s.flights[f].name);
            }
            Action::DelayUpload(f) => {
                s.budget.silences -= 1;
                s.flights[f].late_upload = Some(s.flights[f].name);
            }
            Action::ApplyLateUpload(f) => {
                let name = s.flights[f].late_upload.take().expect("an upload is late");
                s.images.insert(name);
            }
            Action::Tell(f) => self.tell_stored(s, f),
            Action::ReadThenTell { flight: f, responds } => self.read_then_tell(s, f, responds),
            Action::SendReceipt(f) => {
                let flight = s.flights[f];
                let if_generation =
                    if flight.knows { IfGeneration::Current } else { IfGeneration::Gone };
                self.send(s, f, WriteKind::Receipt, flight.slot, if_generation, flight.name);
                // The image is owed if no caller was told and no other flight has claimed it.
                let record = s.records[flight.slot];
                let was_told = matches!(s.callers[f], Caller::Told(_));
                let owed = !was_told && (flight.owes || record.is_some_and(|r| r.owed));
                s.flights[f].wire.as_mut().expect("it was sent").owed = owed;
            }
            Action::SendRelease(f) => {
                let slot = s.flights[f].slot;
                let is_mine = |record: &Option<Record>| {
                    record.is_some_and(|r| r.kind == Kind::Lease && r.holder == Some(f))
                };
                let slot = if is_mine(&s.records[slot]) {
                    Some(slot)
                } else {
                    s.records.iter().position(is_mine)
                };
                match slot {
                    Some(slot) if !self.overwrite_refused => {
                        let name = s.records[slot].expect("it is mine").name;
                        self.send(s, f, WriteKind::Release, slot, IfGeneration::Current, name);
                    }
                    _ => self.end(s, f),
                }
            }
            Action::GiveUpRelease(f) => self.end(s, f),
            Action::Leave(f) => {
                s.budget.leaves -= 1;
                s.callers[f] = Caller::Left;
                s.flights[f].owes = self.is_leased() && !self.keyed;
            }
            Action::Cancel(f) => {
                s.budget.cancels -= 1;
                self.cancel(s, f);
            }
            Action::Deadline(f) => self.cancel(s, f),
            Action::Die(f) => {
                s.budget.deaths -= 1;
                for caller in &mut s.callers {
                    if *caller == Caller::Waiting(f) {
                        *caller = Caller::Left;
                    }
                }
                self.vanish(s, f);
            }
            Action::Freeze(f) => {
                s.budget.freezes -= 1;
                s.flights[f].frozen = true;
                s.flights[f].excused = true;
            }
            Action::Thaw(f) => {
                s.flights[f].frozen = false;
                if let Some(write) = s.flights[f].wire
                    && let Some(response) = write.response
                {
                    self.handle_response(s, f, &write, response);
                }
            }
            Action::Tick => self.tick(s),
        }
        self.forget_what_no_longer_matters(s);
    }

    /// A record that cannot be overwritten is succeeded by the next one.
    fn count_succession(&self, s: &mut State, write: &Write, response: Response) {
        if response == Response::Confirmed
            && write.kind == WriteKind::Create
            && self.keyed
            && write.slot > 0
        {
            s.successions[write.slot] += 1;
            let last = s.records[write.slot - 1].expect("slots have no gaps");
            if last.holder.is_some_and(|holder| s.flights[holder].must_keep_its_lease()) {
                s.breach = Some(Breach::TookFromLiving);
            }
        }
    }

    fn tell_stored(&self, s: &mut State, f: Id) {
        let name = s.flights[f].name;
        if !self.is_leased() {
            self.tell(s, f, name);
            s.flights[f].stage = Stage::Remembered;
            return;
        }
        if !self.is(Broken::ReceiptFailureFailsRequest) {
            self.tell(s, f, name);
        }
        s.flights[f].stage = Stage::Recording;
        if self.overwrite_refused {
            self.end(s, f);
        }
    }

    fn read_then_tell(&self, s: &mut State, f: Id, responds: bool) {
        let flight = s.flights[f];
        if !responds {
            s.budget.silences -= 1;
            let if_generation =
                if flight.knows { IfGeneration::Current } else { IfGeneration::Gone };
            return self.send(s, f, WriteKind::Receipt, flight.slot, if_generation, flight.name);
        }
        match s.records[flight.slot] {
            Some(record) if record.kind == Kind::Receipt => {
                if self.is(Broken::DeleteDuplicate) && record.name != flight.name {
                    s.images.remove(flight.name);
                }
                self.tell(s, f, record.name);
                self.end(s, f);
            }
            record => {
                let if_generation =
                    if record.is_some() { IfGeneration::Current } else { IfGeneration::Nothing };
                self.send(s, f, WriteKind::Receipt, flight.slot, if_generation, flight.name);
            }
        }
    }

    fn tick(&self, s: &mut State) {
        let cap = self.cap();
        let older = |age: &mut u8, cap: u8| *age = (*age + 1).min(cap);
        for record in s.records.iter_mut().flatten() {
            match (record.kind, self.window) {
                (Kind::Lease, _) => {
                    let cap = cap.saturating_sub(record.carried).max(1);
                    older(&mut record.age, cap);
                    older(&mut record.silent, self.life + 2);
                }
                (Kind::Receipt, Some(window)) => older(&mut record.age, window + 2),
                _ => {}
            }
        }
        let age_cap = if self.overwrite_refused { self.deadline } else { 1 };
        for flight in &mut s.flights {
            if flight.stage != Stage::NotBegun {
                older(&mut flight.age, age_cap);
            }
            if flight.holds_record() && self.is_leased() && !self.overwrite_refused {
                older(&mut flight.held_for, self.life);
            }
            if let Some(write) = &mut flight.wire {
                older(&mut write.sent_for, self.life);
            }
            if let Some(doubt) = &mut flight.doubt_for {
                older(doubt, self.life);
            }
            if let Some(seen) = &mut flight.seen_for
                && self.dateless
            {
                older(seen, cap);
            }
        }
    }

    /// Makes states equal that differ only in what no step reads.
    fn forget_what_no_longer_matters(&self, s: &mut State) {
        for record in s.records.iter_mut().flatten() {
            if self.keyed {
                record.renewed = false;
                record.asked = 0;
            }
            if !self.overwrite_refused {
                record.ends = 0;
            }
        }
        for f in 0..FLIGHTS {
            let flight = &mut s.flights[f];
            if !self.dateless {
                flight.seen_for = None;
            }
            if self.keyed && !self.overwrite_refused {
                flight.age = 0;
            }
            if flight.late_upload.is_some_and(|name| s.images.has(name)) {
                flight.late_upload = None;
            }
            if let Some(late) = &mut flight.late {
                late.sent_for = 0;
            }
            if let Some(write) = &mut flight.wire
                && !matches!(write.kind, WriteKind::Create | WriteKind::TakeOver | WriteKind::Renew)
            {
                write.sent_for = 0;
            }
            if !flight.holds_record() {
                flight.held_for = 0;
                flight.lost = false;
                flight.knows &= flight.stage == Stage::Releasing;
                flight.excused = false;
            }
            if flight.paid {
                flight.asked_after_stored = false;
            }
        }
    }
}

// ---- Symmetry: which request is which does not matter

impl State {
    /// The smallest of the states that differ from this one in the order of three requests only.
    pub fn of_equal_requests(&self) -> State {
        const ORDERS: [[Id; FLIGHTS]; 6] =
            [[0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3], [1, 2, 0, 3], [2, 0, 1, 3], [2, 1, 0, 3]];
        self.smallest(&ORDERS)
    }

    /// The same for two variants, each with its retry.
    pub fn of_two_variants(&self) -> State {
        self.smallest(&[[0, 1, 2, 3], [1, 0, 3, 2]])
    }

    fn smallest(&self, orders: &[[Id; FLIGHTS]]) -> State {
        let shapes: [_; FLIGHTS] = std::array::from_fn(|id| self.flights[id].shape());
        let is_sorted = |order: &[Id; FLIGHTS]| {
            let mut sorted = shapes;
            for id in 0..FLIGHTS {
                sorted[order[id]] = shapes[id];
            }
            sorted
        };
        // Most orders differ in the shapes of the flights; build only those that tie.
        let least = orders.iter().map(is_sorted).min().expect("there are some");
        let tied = orders.iter().filter(|order| is_sorted(order) == least);
        tied.map(|order| self.reordered(order)).min().expect("as above")
    }

    fn reordered(&self, order: &[Id; FLIGHTS]) -> State {
        let moved = |set: Set| {
            let ids = (0..FLIGHTS).filter(|&id| set.has(id));
            Set(ids.fold(0, |bits, id| bits | 1 << order[id]))
        };
        let mut state = self.clone();
        state.images = moved(self.images);
        state.told = moved(self.told);
        for record in state.records.iter_mut().flatten() {
            record.holder = record.holder.map(|id| order[id]);
            record.claimant = record.claimant.map(|id| order[id]);
            record.name = order[record.name];
        }
        for id in 0..FLIGHTS {
            let mut flight = self.flights[id];
            if flight.stage != Stage::NotBegun && flight.stage != Stage::Done {
                flight.name = order[flight.name];
            }
            for write in [&mut flight.wire, &mut flight.late].into_iter().flatten() {
                write.name = order[write.name];
            }
            flight.late_upload = flight.late_upload.map(|name| order[name]);
            state.flights[order[id]] = flight;
            state.callers[order[id]] = match self.callers[id] {
                Caller::Waiting(flight) => Caller::Waiting(order[flight]),
                Caller::Told(name) => Caller::Told(order[name]),
                caller => caller,
            };
        }
        state
    }
}

pub mod properties;
