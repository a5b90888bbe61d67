//! What each path shows, after DMTF's schemas (DSP8010).

use crate::{Power, machine::Machine, rack::Rack};
use serde_json::{Value, json};

/// The resets that every system knows.
pub(crate) const RESETS: [&str; 4] = ["On", "ForceOff", "GracefulShutdown", "ForceRestart"];
const ROOT: &str = "/redfish/v1";

pub(crate) fn service_root() -> Value {
    json!({
        "@odata.id": "/redfish/v1/",
        "@odata.type": "#ServiceRoot.v1_21_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Root Service",
        "RedfishVersion": "1.20.0",
        "Product": "Controller for tests",
        "UUID": "8d4bb2c2-5a3f-4c1e-9a63-0f5c53a6c1de",
        "Systems": link("Systems"),
        "Chassis": link("Chassis"),
        "Managers": link("Managers"),
        "SessionService": link("SessionService"),
        "Links": { "Sessions": link("SessionService/Sessions") },
    })
}

pub(crate) fn versions() -> Value {
    json!({ "v1": "/redfish/v1/" })
}

pub(crate) fn service_document() -> Value {
    let names = ["Systems", "Chassis", "Managers", "SessionService"];
    let values = names
        .map(|name| json!({ "name": name, "kind": "Singleton", "url": format!("{ROOT}/{name}") }));
    json!({ "@odata.context": "/redfish/v1/$metadata", "value": values })
}

/// Which schemas are in use, as OData has it.
pub(crate) fn metadata() -> String {
    let schemas = [
        "ServiceRoot",
        "ComputerSystemCollection",
        "ComputerSystem",
        "ChassisCollection",
        "Chassis",
        "ManagerCollection",
        "Manager",
        "SessionService",
        "SessionCollection",
        "Session",
        "EthernetInterfaceCollection",
        "EthernetInterface",
        "PowerSubsystem",
        "EnvironmentMetrics",
    ];
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<edmx:Edmx xmlns:edmx=\"http://docs.oasis-open.org/odata/ns/edmx\" Version=\"4.0\">\n",
    );
    for name in schemas {
        text.push_str(&format!(
            "  <edmx:Reference Uri=\"http://redfish.dmtf.org/schemas/v1/{name}_v1.xml\"><edmx:Include Namespace=\"{name}\"/></edmx:Reference>\n"
        ));
    }
    text.push_str("  <edmx:DataServices/>\n</edmx:Edmx>\n");
    text
}

fn link(path: &str) -> Value {
    json!({ "@odata.id": format!("{ROOT}/{path}") })
}

fn collection(path: &str, kind: &str, members: impl IntoIterator<Item = String>) -> Value {
    let members: Vec<Value> = members
        .into_iter()
        .map(|id| link(&format!("{path}/{id}")))
        .collect();
    json!({
        "@odata.id": format!("{ROOT}/{path}"),
        "@odata.type": format!("#{kind}Collection.{kind}Collection"),
        "Name": format!("{kind} Collection"),
        "Members@odata.count": members.len(),
        "Members": members,
    })
}

/// What a path below `/redfish/v1/` shows, as its parts; nothing if there is nothing.
pub(crate) fn find(rack: &Rack, parts: &[&str]) -> Option<Value> {
    let names = || rack.machines.iter().map(|one| one.name.clone());
    Some(match parts {
        [] => service_root(),
        ["odata"] => service_document(),
        ["Systems"] => collection("Systems", "ComputerSystem", names()),
        ["Chassis"] => collection("Chassis", "Chassis", names()),
        ["Managers"] => collection("Managers", "Manager", ["bmc".to_owned()]),
        ["Managers", "bmc"] => manager(rack),
        ["SessionService"] => session_service(),
        ["SessionService", "Sessions"] => {
            let ids = rack.sessions.keys().map(u64::to_string);
            collection("SessionService/Sessions", "Session", ids)
        }
        ["SessionService", "Sessions", id] => session(rack, id)?,
        ["Systems", name] => system(rack.machine(name)?),
        ["Systems", name, "EthernetInterfaces"] => {
            rack.machine(name)?;
            let path = format!("Systems/{name}/EthernetInterfaces");
            collection(&path, "EthernetInterface", ["nic0".to_owned()])
        }
        ["Systems", name, "EthernetInterfaces", "nic0"] => card(rack.machine(name)?),
        ["Chassis", name] => chassis(rack.machine(name)?),
        ["Chassis", name, "PowerSubsystem"] => power_subsystem(rack.machine(name)?),
        ["Chassis", name, "EnvironmentMetrics"] => environment(rack.machine(name)?),
        _ => return None,
    })
}

fn system(machine: &Machine) -> Value {
    let name = &machine.name;
    let path = format!("{ROOT}/Systems/{name}");
    let state = match machine.power {
        Power::Off => "Disabled",
        Power::Starting { .. } => "Starting",
        Power::On | Power::Stopping { .. } => "Enabled",
    };
    json!({
        "@odata.id": path,
        "@odata.type": "#ComputerSystem.v1_28_0.ComputerSystem",
        "@odata.etag": tag(machine),
        "Id": name,
        "Name": name,
        "SystemType": "Physical",
        "PowerState": machine.says(),
        "Status": { "State": state, "Health": "OK" },
        "EthernetInterfaces": { "@odata.id": format!("{path}/EthernetInterfaces") },
        "Links": {
            "Chassis": [link(&format!("Chassis/{name}"))],
            "ManagedBy": [link("Managers/bmc")],
        },
        "Actions": { "#ComputerSystem.Reset": {
            "target": format!("{path}/Actions/ComputerSystem.Reset"),
            "ResetType@Redfish.AllowableValues": RESETS,
        } },
    })
}

fn card(machine: &Machine) -> Value {
    json!({
        "@odata.id": format!("{ROOT}/Systems/{}/EthernetInterfaces/nic0", machine.name),
        "@odata.type": "#EthernetInterface.v1_12_5.EthernetInterface",
        "Id": "nic0",
        "Name": "First network card",
        "MACAddress": machine.mac,
        "LinkStatus": if machine.is_up() { "LinkUp" } else { "LinkDown" },
    })
}

fn chassis(machine: &Machine) -> Value {
    let name = &machine.name;
    json!({
        "@odata.id": format!("{ROOT}/Chassis/{name}"),
        "@odata.type": "#Chassis.v1_28_0.Chassis",
        "Id": name,
        "Name": name,
        "ChassisType": "RackMount",
        "PowerState": machine.says(),
        "PowerSubsystem": link(&format!("Chassis/{name}/PowerSubsystem")),
        "EnvironmentMetrics": link(&format!("Chassis/{name}/EnvironmentMetrics")),
        "Links": {
            "ComputerSystems": [link(&format!("Systems/{name}"))],
            "ManagedBy": [link("Managers/bmc")],
        },
    })
}

fn power_subsystem(machine: &Machine) -> Value {
    json!({
        "@odata.id": format!("{ROOT}/Chassis/{}/PowerSubsystem", machine.name),
        "@odata.type": "#PowerSubsystem.v1_1_4.PowerSubsystem",
        "Id": "PowerSubsystem",
        "Name": "Power Subsystem",
        "CapacityWatts": 750,
        "Status": { "State": "Enabled", "Health": "OK" },
    })
}

fn environment(machine: &Machine) -> Value {
    json!({
        "@odata.id": format!("{ROOT}/Chassis/{}/EnvironmentMetrics", machine.name),
        "@odata.type": "#EnvironmentMetrics.v1_6_0.EnvironmentMetrics",
        "Id": "EnvironmentMetrics",
        "Name": "What it draws",
        "PowerWatts": { "Reading": machine.draws() },
    })
}

fn manager(rack: &Rack) -> Value {
    let names = || rack.machines.iter().map(|one| &one.name);
    let systems: Vec<Value> = names()
        .map(|name| link(&format!("Systems/{name}")))
        .collect();
    let chassis: Vec<Value> = names()
        .map(|name| link(&format!("Chassis/{name}")))
        .collect();
    json!({
        "@odata.id": "/redfish/v1/Managers/bmc",
        "@odata.type": "#Manager.v1_25_0.Manager",
        "Id": "bmc",
        "Name": "Controller",
        "ManagerType": "BMC",
        "FirmwareVersion": env!("CARGO_PKG_VERSION"),
        "PowerState": "On",
        "Status": { "State": "Enabled", "Health": "OK" },
        "Links": { "ManagerForServers": systems, "ManagerForChassis": chassis },
    })
}

fn session_service() -> Value {
    json!({
        "@odata.id": "/redfish/v1/SessionService",
        "@odata.type": "#SessionService.v1_2_0.SessionService",
        "Id": "SessionService",
        "Name": "Session Service",
        "ServiceEnabled": true,
        "SessionTimeout": 1800,
        "Sessions": link("SessionService/Sessions"),
    })
}

pub(crate) fn session(rack: &Rack, id: &str) -> Option<Value> {
    let session = rack.sessions.get(&id.parse().ok()?)?;
    Some(json!({
        "@odata.id": format!("{ROOT}/SessionService/Sessions/{id}"),
        "@odata.type": "#Session.v1_8_0.Session",
        "Id": id,
        "Name": "Session",
        "UserName": session.user,
        "Password": null,
    }))
}

/// The tag of a system as it is now.
pub(crate) fn tag(machine: &Machine) -> String {
    format!("W/\"{}\"", machine.revision)
}
