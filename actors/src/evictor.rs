//! Keeps the memory of this node's devices: who was promised what, and who must be refused.
//!
//! Supervised by [`crate::node`]; supervises nobody. A restart loses the ledger, which is rebuilt from the devices' truth: the supervisor asks
//! devices and models to announce themselves again.

pub mod ledger;

use plexus_engine::executor::DeviceDescription;
use plexus_types::{Bytes, DeviceId, ModelId};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorMessage;
use tracing::warn;

use self::ledger::{Lease, Ledger, NoRoom};
use crate::address::Address;
use crate::inspect::Inspection;
use crate::router::RouterMsg;

/// What the actor is started with.
#[derive(Debug, Clone)]
pub struct EvictorArgs {
    /// Its own address.
    pub address: Address<EvictorMsg>,
    /// Told of the devices' memory.
    pub router: Address<RouterMsg>,
}

/// What the actor is told.
#[derive(Debug, RactorMessage)]
pub enum EvictorMsg {
    /// A device was opened.
    DeviceUp(DeviceDescription),
    /// Which devices may this model go to, with what room, the best first?
    Choices(Option<DeviceId>, RpcReplyPort<Vec<(DeviceId, Bytes)>>),
    /// Promise memory of a device to a model.
    Promise {
        /// Which device.
        device: DeviceId,
        /// Which model.
        model: ModelId,
        /// Which promise this is.
        lease: Lease,
        /// How much.
        needed: Bytes,
        /// Whether it has it now.
        reply: RpcReplyPort<Result<(), NoRoom>>,
    },
    /// A model that is resident says so, to an evictor that was restarted.
    Holds {
        /// Which device.
        device: DeviceId,
        /// Which model.
        model: ModelId,
        /// Which promise it holds.
        lease: Lease,
        /// How much it was promised.
        bytes: Bytes,
    },
    /// A model no longer needs what it was promised.
    Release {
        /// Which device.
        device: DeviceId,
        /// Which model.
        model: ModelId,
        /// Which promise.
        lease: Lease,
    },
    /// Say how you are.
    Inspect(RpcReplyPort<Inspection>),
}

/// The actor: see the module.
#[derive(Debug)]
pub struct EvictorActor;

/// What the actor holds.
#[derive(Debug)]
pub struct EvictorState {
    args: EvictorArgs,
    ledger: Ledger,
    n_promised: u64,
    n_refused: u64,
}

impl Actor for EvictorActor {
    type Msg = EvictorMsg;
    type State = EvictorState;
    type Arguments = EvictorArgs;

    async fn pre_start(&self, myself: ActorRef<EvictorMsg>, args: EvictorArgs) -> Result<EvictorState, ActorProcessingErr> {
        args.address.attach(myself);
        Ok(EvictorState { args, ledger: Ledger::default(), n_promised: 0, n_refused: 0 })
    }

    async fn handle(&self, _myself: ActorRef<EvictorMsg>, message: EvictorMsg, state: &mut EvictorState) -> Result<(), ActorProcessingErr> {
        state.args.address.taken();
        match message {
            EvictorMsg::DeviceUp(device) => {
                state.ledger.open(device.id, device.name, device.memory_total);
                state.publish();
            }
            EvictorMsg::Choices(wanted, reply) => drop(reply.send(state.ledger.choices(wanted))),
            EvictorMsg::Promise { device, model, lease, needed, reply } => {
                drop(reply.send(state.on_promise(device, &model, lease, needed)))
            }
            EvictorMsg::Holds { device, model, lease, bytes } => {
                if let Err(error) = state.on_promise(device, &model, lease, bytes) {
                    warn!(%device, %model, %error, "a resident model no longer fits the ledger");
                }
            }
            EvictorMsg::Release { device, model, lease } => {
                state.ledger.release(device, &model, lease);
                state.publish();
            }
            EvictorMsg::Inspect(reply) => drop(reply.send(state.inspect())),
        }
        Ok(())
    }
}

impl EvictorState {
    fn on_promise(&mut self, device: DeviceId, model: &ModelId, lease: Lease, needed: Bytes) -> Result<(), NoRoom> {
        let result = self.ledger.promise(device, model, lease, needed);
        match &result {
            Ok(()) => {
                self.n_promised += 1;
                self.publish();
            }
            Err(_) => self.n_refused += 1,
        }
        result
    }

    fn publish(&self) {
        self.args.router.tell(RouterMsg::OwnDevices(self.ledger.report()));
    }

    fn inspect(&self) -> Inspection {
        let used: Bytes = self.ledger.report().iter().map(|device| device.memory_used).sum();
        Inspection::new("keeping", [("promised", self.n_promised), ("refused", self.n_refused), ("bytes_promised", used.0)])
    }
}
