//! Both halves of a stream against each other over a FIFO link, with pipes of bounded size and every
//! event in random order. `DVS_SEED` replays one seed, `DVS_SEEDS` says how many.

use std::collections::VecDeque;

use super::*;
use crate::messages::MAX_RECORD;
use crate::test_random::Random;

fn seeds() -> Vec<u64> {
    match std::env::var("DVS_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => {
            let count = std::env::var("DVS_SEEDS").ok().and_then(|count| count.parse().ok());
            (0..count.unwrap_or(100)).collect()
        }
    }
}

enum Up {
    Data(Vec<u16>, Vec<u8>),
    End,
    Drained,
}

/// Away pipe of packets, link, home pipe of bytes.
#[test]
fn output_arrives_whole_in_order_and_within_the_window() {
    for seed in seeds() {
        let mut random = Random(seed);
        let total = random.below(400_000);
        let home_size = MAX_RECORD * (1 + random.below(20));
        let mut home: VecDeque<u8> = VecDeque::new();
        let mut away: VecDeque<Vec<u8>> = VecDeque::new();
        let mut up: VecDeque<Up> = VecDeque::new();
        let mut down: VecDeque<u64> = VecDeque::new();
        let mut receiver = OutputReceiver::new(home_size);
        let mut sender = OutputSender::new(receiver.granted());
        let (mut produced, mut seen, mut expected_next) = (0usize, 0usize, 0u8);
        let (mut mark, mut drained, mut home_mark) = (None, false, None);
        // The body ends at some point; its child writes the rest.
        let body_end = random.below(total + 1);
        let (mut end_sent, mut finished, mut ends) = (false, false, 0);
        let mut steps = 0;
        while !(finished && home.is_empty()) {
            steps += 1;
            assert!(steps < 20_000_000, "seed {seed}: no progress");
            match random.below(6) {
                0 => {
                    let before_end = if produced < body_end { body_end } else { total };
                    if produced < total && away.len() < sender.slots() {
                        let length =
                            (1 + random.below(MAX_RECORD)).min(before_end - produced).max(1);
                        away.push_back(
                            (produced..produced + length).map(|i| (i % 251) as u8).collect(),
                        );
                        produced += length;
                    }
                    if produced >= body_end && mark.is_none() {
                        mark = Some(sender.mark(away.iter().map(Vec::len).sum()));
                    }
                }
                1 => {
                    let (mut records, mut bytes) = (Vec::new(), Vec::new());
                    while sender.may_take() && bytes.len() < 60_000 {
                        let Some(record) = away.pop_front() else { break };
                        sender.took(record.len());
                        records.push(record.len() as u16);
                        bytes.extend(record);
                    }
                    if !bytes.is_empty() {
                        up.push_back(Up::Data(records, bytes));
                    }
                    if produced == total && away.is_empty() && !end_sent {
                        sender.end();
                        end_sent = true;
                        up.push_back(Up::End);
                    }
                    if let Some(at) = mark
                        && sender.passed(at)
                        && !drained
                    {
                        drained = true;
                        up.push_back(Up::Drained);
                    }
                }
                2 => match up.pop_front() {
                    Some(Up::Data(records, bytes)) => receiver.data(records, bytes).unwrap(),
                    Some(Up::End) => {
                        ends += 1;
                        receiver.end();
                    }
                    Some(Up::Drained) => home_mark = Some(receiver.mark()),
                    None => {}
                },
                3 => {
                    // A writable pipe has at least one free page.
                    while let Some(bytes) = receiver.next(home_size - home.len()) {
                        let room = home_size - home.len();
                        let take = if bytes.len() <= MAX_RECORD || bytes.len() <= room {
                            if bytes.len() > room { break } else { bytes.len() }
                        } else {
                            bytes.len().min(room / MAX_RECORD * MAX_RECORD)
                        };
                        if take == 0 {
                            break;
                        }
                        home.extend(&bytes[..take]);
                        receiver.wrote(take);
                    }
                    let room = home_size - home.len();
                    if receiver.wants_room()
                        && room >= MAX_RECORD
                        && let Some(total) = receiver.room(room)
                    {
                        down.push_back(total);
                    }
                    if receiver.finished() {
                        finished = true;
                    }
                }
                4 => {
                    if let Some(total) = down.pop_front() {
                        sender.credit(total).unwrap();
                    }
                }
                _ => {
                    for _ in 0..random.below(home.len() + 1) {
                        assert_eq!(home.pop_front(), Some(expected_next), "seed {seed}");
                        seen += 1;
                        expected_next = (seen % 251) as u8;
                    }
                }
            }
            let under_way: usize = up
                .iter()
                .map(|message| if let Up::Data(_, bytes) = message { bytes.len() } else { 0 })
                .sum();
            assert!(under_way as u64 <= MAX_WINDOW, "seed {seed}");
            assert!(
                under_way + home.len() <= home_size + MAX_RECORD,
                "seed {seed}: more under way than there is room for"
            );
            assert!(
                produced - seen <= home_size + MAX_RECORD,
                "seed {seed}: the body is more than a page ahead of a native one"
            );
            if let Some(at) = home_mark
                && receiver.passed(at)
            {
                assert!(seen + home.len() >= body_end, "seed {seed}: drained too early");
            }
        }
        assert_eq!(seen, total, "seed {seed}");
        assert_eq!(ends, 1, "seed {seed}");
        assert!(home_mark.is_some_and(|at| receiver.passed(at)), "seed {seed}: never drained");
    }
}

enum Down {
    Data(Vec<u8>),
    End,
}

enum Report {
    Consumed(u64),
    Broken(u64),
}

/// A body that reads a part and ends: exactly the rest is in home's pipe afterwards.
#[test]
fn input_is_never_read_beyond_what_the_body_took() {
    for seed in seeds() {
        let mut random = Random(seed);
        let total = random.below(300_000);
        let stop_at = if random.below(2) == 0 { total } else { random.below(total + 1) };
        let home_size = MAX_RECORD * (1 + random.below(20));
        let mut home: VecDeque<u8> = VecDeque::new();
        let mut local: VecDeque<u8> = VecDeque::new();
        // Bytes in the first slot of the local pipe; 0: it is not full.
        let mut first_slot = 0usize;
        let mut down: VecDeque<Down> = VecDeque::new();
        let mut up: VecDeque<Report> = VecDeque::new();
        let (mut sender, mut feeder) = (InputSender::new(), InputFeeder::new());
        sender.ready();
        let (mut produced, mut taken, mut read) = (0usize, 0usize, 0usize);
        let (mut closed, mut home_done, mut ends) = (false, false, 0);
        let mut local_open = true;
        let mut steps = 0;
        while !home_done {
            steps += 1;
            assert!(steps < 20_000_000, "seed {seed}: no progress");
            match random.below(6) {
                0 => {
                    let length =
                        random.below(9000).min(total - produced).min(home_size - home.len());
                    home.extend((produced..produced + length).map(|i| (i % 251) as u8));
                    produced += length;
                }
                1 => {
                    let wanted = sender.wanted();
                    if wanted > 0 {
                        let bytes: Vec<u8> =
                            home.iter().skip(sender.outstanding()).take(wanted).copied().collect();
                        if !bytes.is_empty() {
                            sender.sent(bytes.len());
                            down.push_back(Down::Data(bytes));
                        } else if produced == total && home.is_empty() && sender.end() {
                            down.push_back(Down::End);
                            home_done = closed;
                        }
                    }
                }
                2 if !closed => match down.pop_front() {
                    Some(Down::Data(bytes)) => feeder.data(&bytes).unwrap(),
                    Some(Down::End) => {
                        ends += 1;
                        feeder.end();
                    }
                    None => {}
                },
                3 if !closed && local_open => {
                    if first_slot == 0 {
                        if random.below(2) == 0 {
                            let back: Vec<u8> = local.drain(..).collect();
                            feeder.taken_back(&back);
                        }
                        if local.is_empty() {
                            let writes = layout(feeder.unfed().len(), MAX_SLOTS);
                            let length = writes.iter().sum();
                            local.extend(&feeder.unfed()[..length]);
                            feeder.fed(length);
                            first_slot = writes.first().copied().unwrap_or(0);
                        }
                    }
                    if let Some(total) = feeder.look(local.len()) {
                        up.push_back(Report::Consumed(total));
                    }
                    if feeder.finished() {
                        local_open = false;
                    }
                }
                4 => match up.pop_front() {
                    Some(Report::Consumed(total)) => {
                        for _ in 0..sender.consumed(total).unwrap() {
                            home.pop_front().unwrap();
                            taken += 1;
                        }
                    }
                    Some(Report::Broken(total)) => {
                        for _ in 0..sender.consumed(total).unwrap() {
                            home.pop_front().unwrap();
                            taken += 1;
                        }
                        home_done = true;
                    }
                    None => {}
                },
                _ if !closed => {
                    for _ in 0..random.below(5000).min(local.len()).min(stop_at - read) {
                        assert_eq!(local.pop_front(), Some((read % 251) as u8), "seed {seed}");
                        read += 1;
                        first_slot = first_slot.saturating_sub(1);
                    }
                    let at_end = !local_open && local.is_empty();
                    if (read == stop_at && stop_at < total) || at_end {
                        closed = true;
                        feeder.look(local.len());
                        if local_open {
                            up.push_back(Report::Broken(feeder.total_consumed()));
                        } else {
                            home_done = true;
                        }
                    }
                }
                _ => {}
            }
            assert!(sender.outstanding() as u64 <= INPUT_WINDOW, "seed {seed}");
            assert!(sender.outstanding() <= home.len(), "seed {seed}: took too much");
        }
        assert_eq!(read, stop_at, "seed {seed}");
        assert_eq!(taken, read, "seed {seed}: home lost bytes that the body did not read");
        assert_eq!(ends, usize::from(stop_at == total), "seed {seed}");
    }
}
