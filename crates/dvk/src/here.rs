//! The carrier inside a process: an endpoint of the exchange of this process's node.

use crate::core::exchange::{EndpointStatistics, Key, Manage, Submission};
use crate::core::frame::Status;
use crate::core::inbox::{From, ReplyToken};
use crate::dc::DcShared;
use crate::deliver::{Handler, Waiter};
use crate::error::CallError;
use crate::ids::Address;
use crate::node::{NodeConfig, Shared};
use crate::port::{Answers, Completion, Outgoing, Port, Refused};
use crate::service;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Here {
    pub(crate) shared: Arc<Shared>,
    dc: Arc<DcShared>,
    key: Key,
    address: Address,
    name: Option<String>,
}

impl Here {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        dc: &Arc<DcShared>,
        key: Key,
        name: Option<String>,
    ) -> Self {
        let (dc, shared) = (Arc::clone(dc), Arc::clone(shared));
        let NodeConfig { id: node, incarnation, .. } = shared.config;
        let address = Address { dc: key.dc, node, incarnation, number: key.number };
        Here { shared, dc, key, address, name }
    }
}

impl Port for Here {
    fn address(&self) -> Address {
        self.address
    }

    fn now(&self) -> u64 {
        self.shared.now()
    }

    fn begin(&self, outgoing: Outgoing, waiter: Option<Waiter>) -> Result<u64, Refused> {
        let shared = &self.shared;
        let due = waiter.is_some().then_some(outgoing.deadline);
        let room = outgoing.to.node == shared.config.id
            || shared.has_room(outgoing.to.node, outgoing.lane);
        let Outgoing { to, kind, lane, body, deadline } = outgoing;
        let submission = Submission { source: self.key, to, kind, lane, body, deadline };
        let mut commands = Vec::new();
        let result =
            shared.exchange.lock().unwrap().submit(submission, waiter, room, &mut commands);
        shared.run(commands);
        if let Some(due) = due {
            shared.timer.due(due);
        }
        result.map_err(|rejected| {
            let Submission { to, kind, lane, body, deadline, .. } = rejected.submission;
            let outgoing = Outgoing { to, kind, lane, body, deadline };
            Refused { error: rejected.error, outgoing, waiter: rejected.waiter }
        })
    }

    fn wait_for_room(&self, deadline: u64) {
        self.shared.wait_for_room(deadline);
    }

    fn notify(&self, to: &Address, bits: u64) -> Result<(), CallError> {
        let mut commands = Vec::new();
        let mut exchange = self.shared.exchange.lock().unwrap();
        let result = exchange.notify(self.key, to, bits, &mut commands);
        drop(exchange);
        self.shared.run(commands);
        result
    }

    fn receive(&self, from: From, deadline: u64, waiter: Waiter) -> Option<u64> {
        let mut commands = Vec::new();
        let mut exchange = self.shared.exchange.lock().unwrap();
        let waits = exchange.receive(self.key, from, deadline, waiter, &mut commands);
        drop(exchange);
        self.shared.run(commands);
        if waits.is_some() {
            self.shared.timer.due(deadline);
        }
        waits
    }

    fn cancel(&self, id: u64) {
        let mut commands = Vec::new();
        self.shared.exchange.lock().unwrap().cancel(id, &mut commands);
        self.shared.run(commands);
    }

    fn block(&self, on: &dyn Completion) {
        // What a batch of this thread holds back may be what is waited for. The exchange or the
        // registry, which owns the other end, completes everything at its deadline at the latest,
        // or when the node is closed.
        crate::batch::flush();
        on.block();
    }

    fn set_handler(&self, handler: Box<Handler>) {
        self.shared.handlers.write().unwrap().insert(self.key, Arc::from(handler));
        let mut commands = Vec::new();
        self.shared.exchange.lock().unwrap().set_handler(self.key, &mut commands);
        self.shared.run(commands);
    }

    fn manage(&self, of: &Address, what: Manage, timeout: Duration) -> Result<(), CallError> {
        service::manage(self, of, what, timeout)
    }

    fn statistics(&self) -> Option<EndpointStatistics> {
        self.shared.exchange.lock().unwrap().endpoint_statistics(self.key)
    }

    fn end(&self) {
        let mut commands = Vec::new();
        self.shared.exchange.lock().unwrap().unbind(self.key, &mut commands);
        let handler = self.shared.handlers.write().unwrap().remove(&self.key);
        drop(handler);
        self.shared.run(commands);
        if let Some(name) = &self.name {
            self.dc.unbind_later(&self.shared, name, self.address);
        }
    }
}

impl Answers for Shared {
    fn answer(self: Arc<Self>, token: ReplyToken, answer: Result<Vec<u8>, Status>) {
        let mut commands = Vec::new();
        self.exchange.lock().unwrap().reply(token, answer, &mut commands);
        self.run(commands);
    }
}
