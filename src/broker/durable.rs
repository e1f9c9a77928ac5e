//! What a session asks of the queue, where it is one that outlives its socket: its own row there, its subscriptions.
//!
//! Promises: nothing of it is told to the client before the queue has committed it; what could not be committed ends the
//! connection, so that the client comes back and hears what holds.

use std::sync::Arc;

use log::warn;

use super::Services;
use super::inbound::Begun;
use crate::message::Filter;
use crate::mqtt::{Suback, Unsuback};
use crate::queue::SessionNumber;
use crate::queue::sessions::{Retained, Subscribed};

/// Adds subscriptions to the session in the store, behind which their SUBACK and their retained messages follow.
pub(super) async fn subscribe(
    services: Arc<Services>,
    number: SessionNumber,
    asked: Vec<(Subscribed, Retained)>,
    suback: Suback,
) -> Begun {
    match services.inlet.subscribe_session(number, asked, services.limits.retained_messages).await {
        Ok(found) => Begun::Retained { suback, found },
        Err(error) => {
            warn!(session = number.0, error:% = error; "Subscriptions could not be kept");
            Begun::Failed
        }
    }
}

/// Takes subscriptions from the session in the store, behind which their UNSUBACK follows.
pub(super) async fn unsubscribe(
    services: Arc<Services>,
    number: SessionNumber,
    filters: Vec<Filter>,
    unsuback: Unsuback,
) -> Begun {
    match services.inlet.unsubscribe_session(number, filters).await {
        Ok(()) => Begun::Unsubscribed { unsuback },
        Err(error) => {
            warn!(session = number.0, error:% = error; "Subscriptions could not be forgotten");
            Begun::Failed
        }
    }
}
