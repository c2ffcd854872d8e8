//! What is ordered to befall the next calls, one by one; standing habits are in `faults`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;

/// Something ordered for the next calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub fault: Fault,
    /// The name of an endpoint; left out it is any but the token's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// So many calls go well first.
    #[serde(default)]
    pub after: u64,
    /// So many calls are befallen.
    #[serde(default = "once")]
    pub times: u64,
}

fn once() -> u64 {
    1
}

/// What befalls a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Answers this code; nothing else happens.
    Errcode(i64),
    /// Does everything, then ends the connection instead of answering.
    LostAnswer,
    /// Answers this code with a text of its own; nothing else happens.
    Refusal(i64, String),
    /// Ends the connection and does nothing.
    LostRequest,
    /// Does everything, and answers after so many milliseconds.
    LateAnswer(u64),
    /// Answers a proxy's page with HTTP 502; nothing else happens.
    NotJson,
    /// Answers this HTTP status without a body; nothing else happens.
    Status(u16),
    /// Does everything, then breaks the JSON of the answer.
    BrokenJson,
    /// Of `user/get`: the page is empty, in the shape of the list's end. Any other call answers as ever.
    EmptyPage,
}

impl Order {
    /// One call of any endpoint.
    pub fn next(fault: Fault) -> Self {
        Self { fault, endpoint: None, after: 0, times: 1 }
    }

    /// Of one endpoint alone.
    pub fn at(self, endpoint: Endpoint) -> Self {
        Self { endpoint: Some(endpoint.name().to_owned()), ..self }
    }

    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    pub fn after(self, after: u64) -> Self {
        Self { after, ..self }
    }
}

/// The orders that are not used up.
#[derive(Debug, Default)]
pub struct Orders {
    any: AtomicBool,
    open: Mutex<Vec<Order>>,
}

impl Orders {
    pub fn add(&self, order: Order) {
        let mut open = self.open.lock().expect("no holder of the orders panics");
        open.push(order);
        self.any.store(true, Ordering::Release);
    }

    pub fn clear(&self) {
        self.open.lock().expect("no holder of the orders panics").clear();
        self.any.store(false, Ordering::Release);
    }

    /// What befalls this call, the oldest order first.
    pub fn befall(&self, endpoint: Endpoint) -> Option<Fault> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut open = self.open.lock().expect("no holder of the orders panics");
        let place = open.iter().position(|order| match &order.endpoint {
            Some(name) => name == endpoint.name(),
            None => endpoint.needs_token(),
        })?;
        let order = &mut open[place];
        if order.after > 0 {
            order.after -= 1;
            return None;
        }
        let fault = order.fault.clone();
        order.times = order.times.saturating_sub(1);
        if order.times == 0 {
            open.remove(place);
            self.any.store(!open.is_empty(), Ordering::Release);
        }
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_waits_befalls_and_is_used_up() {
        let orders = Orders::default();
        orders.add(Order::next(Fault::Errcode(-1)).at(Endpoint::TemplateSend).after(1).times(2));
        assert_eq!(orders.befall(Endpoint::UserGet), None);
        assert_eq!(orders.befall(Endpoint::TemplateSend), None);
        assert_eq!(orders.befall(Endpoint::TemplateSend), Some(Fault::Errcode(-1)));
        assert_eq!(orders.befall(Endpoint::TemplateSend), Some(Fault::Errcode(-1)));
        assert_eq!(orders.befall(Endpoint::TemplateSend), None);
    }
}
