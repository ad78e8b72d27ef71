//! The wire: etcd's client API and our own protocol between members, as generated code.
//!
//! The `.proto` files beside this crate are the source. Those of etcd's packages have Go etcd
//! 3.7's names, numbers and types (`e2e/tests/wire.rs` compares them with the descriptors of Go
//! etcd); `keelson/peer/v1/peer.proto` is ours. All `bytes` fields are [`bytes::Bytes`].
//!
//! In: nothing. Out: messages, gRPC clients and servers, and [`FILE_DESCRIPTOR_SET`]. Deliberately
//! absent: any logic, conversion or validation; those belong to the room that gives a message its
//! meaning.

/// All files of this crate and their imports as one serialized `google.protobuf.FileDescriptorSet`,
/// with custom options: what gRPC reflection serves and what the wire test compares.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The methods of etcd's own services as values.
pub mod rpc {
    #![allow(clippy::enum_variant_names, reason = "services and methods have the names they have")]
    include!(concat!(env!("OUT_DIR"), "/rpcs.rs"));
}

macro_rules! package {
    ($(#[$doc:meta])* $module:ident = $package:literal) => {
        $(#[$doc])*
        #[allow(
            clippy::all,
            clippy::allow_attributes_without_reason,
            clippy::too_many_lines,
            clippy::disallowed_types,
            clippy::disallowed_methods,
            unreachable_pub,
            rustdoc::all,
            reason = "generated code follows prost's style and not ours"
        )]
        pub mod $module {
            tonic::include_proto!($package);
        }
    };
}

package!(
    /// The client API (`etcdserverpb`) and the requests of Go etcd's Raft log.
    etcdserverpb = "etcdserverpb"
);
package!(
    /// Keys and events (`mvccpb`).
    mvccpb = "mvccpb"
);
package!(
    /// Users, roles and permissions (`authpb`).
    authpb = "authpb"
);
package!(
    /// The lock service (`v3lockpb`).
    v3lockpb = "v3lockpb"
);
package!(
    /// The election service (`v3electionpb`).
    v3electionpb = "v3electionpb"
);
package!(
    /// Cluster records of Go etcd's Raft log (`membershippb`).
    membershippb = "membershippb"
);
package!(
    /// The gRPC health service (`grpc.health.v1`).
    health = "grpc.health.v1"
);
package!(
    /// The protocol between members (`keelson.peer.v1`).
    peerpb = "keelson.peer.v1"
);

/// Field numbers of the annotations that say which etcd release introduced a thing (`versionpb`).
/// The package has only extensions, for which prost generates nothing; the annotations themselves
/// are in [`FILE_DESCRIPTOR_SET`].
pub mod versionpb {
    /// `etcd_version_msg`, an extension of `google.protobuf.MessageOptions`.
    pub const ETCD_VERSION_MSG: u32 = 50_000;
    /// `etcd_version_field`, an extension of `google.protobuf.FieldOptions`.
    pub const ETCD_VERSION_FIELD: u32 = 50_001;
    /// `etcd_version_enum`, an extension of `google.protobuf.EnumOptions`.
    pub const ETCD_VERSION_ENUM: u32 = 50_002;
    /// `etcd_version_enum_value`, an extension of `google.protobuf.EnumValueOptions`.
    pub const ETCD_VERSION_ENUM_VALUE: u32 = 50_003;
}
