//! By claim: slots, make-up runs, jumps of the clock; and a simulation over random days.

use proptest::prelude::*;

use super::*;
use crate::control::schedule::plan::{Entry, STAGGER};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// 2026-11-23T00:00:00Z, a Monday.
const MONDAY: u64 = 1_795_392_000_000;

fn cron(text: &str) -> Schedule {
    Schedule::Cron(CronLine::parse(text).unwrap())
}

fn every(ms: u64) -> Schedule {
    Schedule::Every(Duration::from_millis(ms))
}

fn planner(schedules: &[Schedule]) -> Planner {
    Planner::new(entries(schedules), None, [])
}

fn entries(schedules: &[Schedule]) -> Vec<Entry> {
    let named = schedules.iter().enumerate();
    named.map(|(i, s)| Entry { backup: format!("b{i}"), schedule: s.clone() }).collect()
}

/// Plans and stores at once; returns what was started.
fn step(planner: &mut Planner, now_ms: u64) -> Vec<Start> {
    let plan = planner.plan(now_ms, &|_| false);
    assert!(plan.again_ms > now_ms, "the planner must not ask to be called at once for ever");
    for (backup, mark) in plan.marks {
        planner.accept(&backup, mark);
    }
    for start in &plan.start {
        planner.accept(&start.backup, start.mark.clone());
    }
    plan.start
}

#[test]
fn cron_lines_that_are_none() {
    assert_eq!(CronLine::parse("0 3 * *"), Err(CronError::Fields(4)));
    assert_eq!(CronLine::parse("0 0 3 * * *"), Err(CronError::Fields(6)));
    assert_eq!(CronLine::parse(""), Err(CronError::Fields(0)));
    assert_eq!(CronLine::parse("0 0 30 2 *"), Err(CronError::NoDate));
    for bad in [
        "61 3 * * *",
        "x 3 * * *",
        "0 24 * * *",
        "0 3 * 13 *",
        "0 3 * * 9",
        "@often",
        "*/0 * * * *",
    ] {
        assert!(CronLine::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(CronLine::parse(&"*".repeat(201)), Err(CronError::TooLong));
    assert_eq!(CronLine::parse(" @daily ").unwrap().text(), "0 0 * * *");
    assert!(CronLine::parse("0 0 29 2 *").is_ok(), "leap days exist");
}

#[test]
fn slots_are_utc() {
    let three = cron("0 3 * * *");
    assert_eq!(three.next_after(MONDAY), Some(MONDAY + 3 * HOUR));
    assert_eq!(three.next_after(MONDAY + 3 * HOUR - 1), Some(MONDAY + 3 * HOUR));
    assert_eq!(three.next_after(MONDAY + 3 * HOUR), Some(MONDAY + DAY + 3 * HOUR));
    assert_eq!(cron("*/15 9-17 * * 1-5").next_after(MONDAY), Some(MONDAY + 9 * HOUR));
    assert_eq!(
        cron("30 4 * * SUN").next_after(MONDAY),
        Some(MONDAY + 6 * DAY + 4 * HOUR + 30 * MINUTE)
    );
}

#[test]
fn an_interval_is_due_at_first_start_and_keeps_its_phase() {
    let six = every(6 * HOUR);
    let mark = six.settle(None, MONDAY);
    assert_eq!(six.due(&mark, MONDAY), Due::Now(Slot { at_ms: MONDAY, missed: 0 }));
    let mark = six.started(Slot { at_ms: MONDAY, missed: 0 });
    assert_eq!(six.due(&mark, MONDAY + HOUR), Due::At(MONDAY + 6 * HOUR));
    let late = MONDAY + 20 * HOUR;
    assert_eq!(six.due(&mark, late), Due::Now(Slot { at_ms: MONDAY + 18 * HOUR, missed: 2 }));
    let mark = six.started(Slot { at_ms: MONDAY + 18 * HOUR, missed: 2 });
    assert_eq!(six.due(&mark, late), Due::At(MONDAY + 24 * HOUR));
}

#[test]
fn a_cron_line_waits_for_its_first_slot_and_counts_missed_ones() {
    let three = cron("0 3 * * *");
    let mark = three.settle(None, MONDAY + 5 * HOUR);
    assert_eq!(three.due(&mark, MONDAY + 5 * HOUR), Due::At(MONDAY + DAY + 3 * HOUR));
    let back = MONDAY + 4 * DAY + 12 * HOUR;
    let slot = Slot { at_ms: MONDAY + 4 * DAY + 3 * HOUR, missed: 3 };
    assert_eq!(three.due(&mark, back), Due::Now(slot));
    assert_eq!(cron("* * * * *").due(&mark, back + 100 * DAY), {
        Due::Now(Slot { at_ms: back + 100 * DAY, missed: MISSED_MAX })
    });
}

#[test]
fn a_changed_cron_line_counts_from_now_a_changed_interval_from_its_last_run() {
    let old = cron("0 3 * * *").started(Slot { at_ms: MONDAY + 3 * HOUR, missed: 0 });
    let hourly = cron("0 * * * *");
    let now = MONDAY + 10 * HOUR + MINUTE;
    let mark = hourly.settle(Some(&old), now);
    assert_eq!(hourly.due(&mark, now), Due::At(MONDAY + 11 * HOUR));
    let interval = every(6 * HOUR);
    let mark = interval.settle(Some(&old), now);
    assert_eq!(interval.due(&mark, now), Due::Now(Slot { at_ms: MONDAY + 9 * HOUR, missed: 0 }));
}

#[test]
fn make_up_runs_are_one_per_backup_and_staggered() {
    let schedules = [cron("0 3 * * *"), cron("30 3 * * *"), every(HOUR)];
    let mut planner = planner(&schedules);
    assert_eq!(step(&mut planner, MONDAY).len(), 1, "the interval's first run");
    let now = MONDAY + 3 * DAY + 12 * HOUR;
    let first = step(&mut planner, now);
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].backup.as_str(), first[0].slot.missed), ("b0", 3));
    assert!(step(&mut planner, now + 1).is_empty(), "the next one waits");
    let stagger = u64::try_from(STAGGER.as_millis()).unwrap();
    assert_eq!(step(&mut planner, now + stagger)[0].backup, "b1");
    assert_eq!(step(&mut planner, now + 2 * stagger)[0].backup, "b2");
    assert!(step(&mut planner, now + 3 * stagger).is_empty());
}

#[test]
fn runs_on_time_are_not_staggered() {
    let mut planner = planner(&[cron("0 3 * * *"), cron("0 3 * * *")]);
    step(&mut planner, MONDAY);
    assert_eq!(step(&mut planner, MONDAY + 3 * HOUR + 5).len(), 2);
}

#[test]
fn the_window_holds_runs_back_and_a_busy_backup_makes_up_later() {
    let window = Window::parse("02:30", "04:00").unwrap();
    let mut planner = Planner::new(entries(&[cron("0 3 * * *")]), Some(window), []);
    step(&mut planner, MONDAY);
    let plan = planner.plan(MONDAY + 3 * HOUR, &|_| false);
    assert!(plan.start.is_empty());
    assert_eq!(plan.again_ms, MONDAY + 3 * HOUR + 10 * MINUTE, "a look in between costs nothing");
    assert_eq!(step(&mut planner, MONDAY + 4 * HOUR).len(), 1);

    let mut planner = Planner::new(entries(&[every(HOUR)]), None, []);
    assert_eq!(step(&mut planner, MONDAY).len(), 1);
    assert!(planner.plan(MONDAY + HOUR, &|_| true).start.is_empty());
    assert!(planner.plan(MONDAY + 2 * HOUR, &|_| true).start.is_empty());
    let late = step(&mut planner, MONDAY + 2 * HOUR + MINUTE);
    assert_eq!(late[0].slot, Slot { at_ms: MONDAY + 2 * HOUR, missed: 1 });
}

#[test]
fn a_plan_that_was_not_stored_is_made_again() {
    let mut planner = planner(&[every(HOUR)]);
    let plan = planner.plan(MONDAY, &|_| false);
    assert_eq!(planner.plan(MONDAY, &|_| false).start, plan.start);
}

#[test]
fn a_small_step_back_does_not_run_a_slot_twice() {
    let mut planner = planner(&[cron("0 3 * * *")]);
    step(&mut planner, MONDAY);
    assert_eq!(step(&mut planner, MONDAY + 3 * HOUR + 50).len(), 1);
    assert!(step(&mut planner, MONDAY + 3 * HOUR - 2_000).is_empty());
    assert!(step(&mut planner, MONDAY + 3 * HOUR + 100).is_empty());
}

#[test]
fn a_day_back_starves_nothing_and_a_day_forward_floods_nothing() {
    for schedule in [cron("0 3 * * *"), every(6 * HOUR), cron("*/5 * * * *")] {
        let mut planner = planner(std::slice::from_ref(&schedule));
        step(&mut planner, MONDAY + 4 * HOUR);
        let forward = MONDAY + DAY + 4 * HOUR;
        assert_eq!(step(&mut planner, forward).len(), 1, "{schedule}: one make-up run");
        assert!(step(&mut planner, forward + MINUTE / 2).is_empty());
        let back = MONDAY + 4 * HOUR + MINUTE;
        assert!(step(&mut planner, back).is_empty(), "{schedule}: no run for the jump itself");
        let started = (1..=25 * 60).find(|i| !step(&mut planner, back + i * MINUTE).is_empty());
        assert!(started.is_some(), "{schedule}: starved after the clock went back");
    }
}

fn any_schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        (0u32..60, 0u32..24).prop_map(|(m, h)| cron(&format!("{m} {h} * * *"))),
        (1u32..60).prop_map(|m| cron(&format!("*/{m} * * * *"))),
        (5u64..48 * 60).prop_map(|m| every(m * MINUTE)),
    ]
}

/// The interval, or the gap between the next two slots of the cron line.
fn gap_at(schedule: &Schedule, now_ms: u64) -> Duration {
    match schedule {
        Schedule::Every(interval) => *interval,
        Schedule::Cron(line) => {
            let next = line.next_after(now_ms).unwrap();
            Duration::from_millis(line.next_after(next).unwrap() - next)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Over days of looks at random distances, some of them jumps: the runs of a backup are never more than its
    /// slots in the time that passed plus one per jump, no slot runs twice without a jump, and after the last
    /// jump the next slot is run.
    #[test]
    fn neither_floods_nor_starves(
        schedule in any_schedule(),
        steps in prop::collection::vec((0u8..20, 1u64..90), 1..120),
    ) {
        let mut planner = planner(std::slice::from_ref(&schedule));
        let (mut now, mut passed, mut jumps, mut runs) = (MONDAY + 10 * DAY, 0u64, 0u64, 0u64);
        for (kind, minutes) in steps {
            match kind {
                0 => { now += DAY; jumps += 1; }
                1 => { now -= DAY; jumps += 1; }
                _ => { now += minutes * MINUTE; passed += minutes * MINUTE; }
            }
            let started = step(&mut planner, now);
            prop_assert!(started.len() <= 1);
            runs += started.len() as u64;
        }
        let gap = u64::try_from(gap_at(&schedule, now).as_millis()).unwrap();
        // The shortest gap of `*/m` is the one across the hour.
        let shortest = match &schedule { Schedule::Cron(_) if gap <= HOUR => MINUTE, _ => gap };
        prop_assert!(runs <= passed / shortest + 2 * jumps + 2, "{runs} runs");

        let calm = now + 2 * DAY.max(gap) + 2 * HOUR;
        let mut ran = 0;
        while now < calm {
            now += 5 * MINUTE;
            ran += step(&mut planner, now).len();
        }
        prop_assert!(ran > 0, "{schedule} starved");
    }

    /// Steady looks, never further apart than the interval: every slot of a day is run, exactly once, in order.
    #[test]
    fn every_slot_is_run_once(minute in 0u32..60, hour in 0u32..24, look in 1u64..20) {
        let schedule = cron(&format!("{minute} {hour} * * *"));
        let mut planner = planner(std::slice::from_ref(&schedule));
        let mut slots = Vec::new();
        let mut now = MONDAY;
        while now < MONDAY + 5 * DAY {
            slots.extend(step(&mut planner, now).into_iter().map(|start| start.slot));
            now += look * MINUTE;
        }
        let first = schedule.next_after(MONDAY).unwrap();
        let wanted: Vec<_> = (0..slots.len() as u64)
            .map(|day| Slot { at_ms: first + day * DAY, missed: 0 })
            .collect();
        prop_assert!(slots.len() >= 4);
        prop_assert_eq!(slots, wanted);
    }
}
