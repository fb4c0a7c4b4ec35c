"""Protobuf by hand: the messages of `backup.v1` as tables, an encoder and a strict decoder.

A message is a dict of field name to value. Decoding fills in proto3's defaults, keeps numbers that the
tables do not know under `_unknown`, and raises `WireError` on anything that is not valid protobuf.
"""

import struct


class WireError(Exception):
    """The bytes are not what the contract allows."""


# number: (name, type, repeated). A type that is another table's name is a message.
MESSAGES = {
    "Envelope": {
        1: ("seq", "uint64"),
        2: ("ts_ms", "uint64"),
        3: ("correlation_id", "string"),
        100: ("entry_id", "uint64"),
        10: ("register", "Register"),
        11: ("heartbeat", "Heartbeat"),
        12: ("discovery", "DiscoveryReport"),
        13: ("job_update", "JobUpdate"),
        14: ("backup_completed", "BackupCompleted"),
        15: ("health_result", "HealthCheckResult"),
        16: ("log", "LogEvent"),
        17: ("restore_update", "RestoreUpdate"),
        18: ("ack", "Ack"),
        50: ("register_ack", "RegisterAck"),
        51: ("config_update", "ConfigUpdate"),
        52: ("run_backup", "RunBackup"),
        53: ("cancel_job", "CancelJob"),
        54: ("run_health_check", "RunHealthCheck"),
        56: ("self_update", "SelfUpdate"),
        57: ("ping", "Ping"),
        101: ("part_urls_request", "PartUrlsRequest"),
        150: ("part_urls", "PartUrls"),
    },
    "Register": {
        1: ("agent_version", "string"),
        2: ("hostname", "string"),
        3: ("os", "string"),
        4: ("arch", "string"),
        5: ("docker_version", "string"),
        6: ("capabilities", "string", True),
        7: ("last_known_config_version", "uint64"),
        100: ("store_id", "string"),
    },
    "Heartbeat": {
        1: ("config_version", "uint64"),
        2: ("metrics", "AgentMetrics"),
        3: ("active_job_ids", "string", True),
    },
    "AgentMetrics": {
        1: ("cpu_percent", "float"),
        2: ("mem_used_bytes", "uint64"),
        3: ("mem_total_bytes", "uint64"),
        4: ("disk_used_bytes", "uint64"),
        5: ("disk_total_bytes", "uint64"),
        6: ("queue_depth", "uint32"),
    },
    "DiscoveryReport": {1: ("containers", "DiscoveredContainer", True)},
    "DiscoveredContainer": {
        1: ("container_id", "string"),
        2: ("name", "string"),
        3: ("image", "string"),
        4: ("detected_db_type", "string"),
        5: ("networks", "string", True),
        6: ("env_hints", "MapEntry", True),
        7: ("ports", "PortBinding", True),
    },
    "PortBinding": {
        1: ("container_port", "uint32"),
        2: ("host_port", "uint32"),
        3: ("protocol", "string"),
    },
    "MapEntry": {1: ("key", "string"), 2: ("value", "string")},
    "JobUpdate": {
        1: ("job_id", "string"),
        2: ("status", "enum"),
        3: ("progress_percent", "uint32"),
        4: ("current_step", "string"),
        5: ("error_message", "string"),
        6: ("run_id", "string"),
    },
    "BackupCompleted": {
        1: ("job_id", "string"),
        2: ("run_id", "string"),
        3: ("s3_key", "string"),
        4: ("size_bytes", "uint64"),
        5: ("sha256", "string"),
        6: ("duration_ms", "uint64"),
        7: ("dek_kms_id", "string"),
        8: ("encrypted_dek", "bytes"),
        9: ("compression", "string"),
        10: ("db_engine_version", "string"),
    },
    "HealthCheckResult": {
        1: ("check_id", "string"),
        2: ("ts_ms", "uint64"),
        3: ("ok", "bool"),
        4: ("latency_ms", "uint32"),
        5: ("error", "string"),
        6: ("status_code", "uint32"),
    },
    "LogEvent": {
        1: ("ts_ms", "uint64"),
        2: ("level", "enum"),
        3: ("job_id", "string"),
        4: ("message", "string"),
        5: ("fields", "MapEntry", True),
    },
    "RestoreUpdate": {
        1: ("restore_id", "string"),
        2: ("status", "enum"),
        3: ("progress_percent", "uint32"),
        4: ("current_step", "string"),
        5: ("error_message", "string"),
    },
    "Ack": {1: ("correlation_id", "string"), 2: ("accepted", "bool"), 3: ("reason", "string")},
    "RegisterAck": {
        1: ("session_id", "string"),
        2: ("config", "AgentConfig"),
        3: ("heartbeat_interval_sec", "uint32"),
        4: ("server_time_iso", "string"),
        100: ("durable_acks", "bool"),
    },
    "ConfigUpdate": {1: ("config", "AgentConfig")},
    "AgentConfig": {
        1: ("version", "uint64"),
        2: ("targets", "Target", True),
        3: ("jobs", "BackupJobSpec", True),
        4: ("health_checks", "HealthCheckSpec", True),
        5: ("maintenance", "MaintenanceWindow"),
        6: ("advanced", "AdvancedSettings"),
    },
    "Target": {
        1: ("id", "string"),
        2: ("type", "enum"),
        3: ("display_name", "string"),
        4: ("connection", "ConnectionConfig"),
    },
    "ConnectionConfig": {
        1: ("host", "string"),
        2: ("port", "uint32"),
        3: ("database", "string"),
        4: ("username", "string"),
        5: ("password_secret_ref", "string"),
        6: ("container_id", "string"),
        7: ("strategy", "enum"),
    },
    "BackupJobSpec": {
        1: ("id", "string"),
        2: ("target_id", "string"),
        3: ("cron", "string"),
        4: ("retention_days", "uint32"),
        5: ("compression", "string"),
        6: ("encryption_enabled", "bool"),
        7: ("pre_hooks", "string", True),
        8: ("post_hooks", "string", True),
        9: ("retry", "RetryPolicy"),
        10: ("timeout_sec", "uint32"),
        100: ("upload_bytes_per_sec", "uint64"),
    },
    "RetryPolicy": {1: ("max_attempts", "uint32"), 2: ("backoff_seconds", "uint32", True)},
    "HealthCheckSpec": {
        1: ("id", "string"),
        2: ("name", "string"),
        3: ("type", "enum"),
        4: ("target", "string"),
        5: ("interval_sec", "uint32"),
        6: ("timeout_sec", "uint32"),
        7: ("expected_status", "uint32"),
    },
    "MaintenanceWindow": {1: ("start_utc", "string"), 2: ("end_utc", "string")},
    "AdvancedSettings": {
        1: ("max_parallel_jobs", "uint32"),
        2: ("log_level", "string"),
        3: ("auto_update_enabled", "bool"),
    },
    "RunBackup": {
        1: ("job_id", "string"),
        2: ("run_id", "string"),
        3: ("manual_trigger", "bool"),
        4: ("upload_creds", "S3UploadCreds"),
        5: ("encrypted_dek", "bytes"),
    },
    "S3UploadCreds": {
        1: ("presigned_put_url", "string"),
        2: ("expires_at_ms", "uint64"),
        3: ("final_s3_key", "string"),
        100: ("multipart", "MultipartUpload"),
    },
    "MultipartUpload": {
        1: ("upload_id", "string"),
        2: ("part_size_bytes", "uint64"),
        3: ("parts", "PartUrl", True),
        4: ("complete_url", "string"),
        5: ("abort_url", "string"),
        6: ("expires_at_ms", "uint64"),
    },
    "PartUrl": {1: ("part_number", "uint32"), 2: ("url", "string")},
    "PartUrlsRequest": {
        1: ("run_id", "string"),
        2: ("upload_id", "string"),
        3: ("first_part", "uint32"),
        4: ("count", "uint32"),
    },
    "PartUrls": {
        1: ("run_id", "string"),
        2: ("upload_id", "string"),
        3: ("parts", "PartUrl", True),
        4: ("error", "string"),
    },
    "CancelJob": {1: ("job_id", "string")},
    "RunHealthCheck": {1: ("check_id", "string")},
    "SelfUpdate": {
        1: ("target_version", "string"),
        2: ("binary_url", "string"),
        3: ("sha256", "string"),
        4: ("cosign_signature", "bytes"),
        5: ("force", "bool"),
    },
    "Ping": {1: ("ts_ms", "uint64")},
}

PAYLOADS = {entry[0]: number for number, entry in MESSAGES["Envelope"].items() if number >= 10 and number != 100}
FROM_AGENT = {name for name, number in PAYLOADS.items() if number < 50 or 100 < number < 150}

# JobStatus
QUEUED, RUNNING, SUCCESS, FAILED, CANCELLED = 1, 2, 3, 4, 5
# DbType
POSTGRESQL, MYSQL, MARIADB, MONGODB, REDIS, SQLITE = 1, 2, 3, 4, 5, 6
# ConnectionStrategy
TCP, DOCKER_EXEC, UNIX_SOCKET = 0, 1, 2

_VARINTS = ("uint64", "uint32", "bool", "enum")
_DEFAULTS = {"string": "", "bytes": b"", "float": 0.0, "bool": False}


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data):
            raise WireError("a varint is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise WireError("a varint is longer than ten bytes")
    return value & 0xFFFFFFFFFFFFFFFF, at


def _scalar(kind, value):
    if kind == "string":
        return value.encode()
    if kind == "bytes":
        return bytes(value)
    return encode(kind, value)


def encode(name, message):
    """The bytes of `message`, a dict for the table `name`. Defaults are left out, except inside lists."""
    out = bytearray()
    table = MESSAGES[name]
    for number, entry in table.items():
        field, kind, repeated = (*entry, False)[:3]
        if field not in message or message[field] is None:
            continue
        value = message[field]
        if kind == "MapEntry" and isinstance(value, dict):
            value = [{"key": key, "value": item} for key, item in value.items()]
        if repeated and kind in _VARINTS:
            packed = b"".join(_varint(int(item)) for item in value)
            if packed:
                out += _varint(number << 3 | 2) + _varint(len(packed)) + packed
            continue
        for item in value if repeated else [value]:
            if kind in _VARINTS:
                if item or repeated:
                    out += _varint(number << 3) + _varint(int(item))
            elif kind == "float":
                if item:
                    out += _varint(number << 3 | 5) + struct.pack("<f", item)
            else:
                body = _scalar(kind, item)
                if body or repeated or kind in MESSAGES:
                    out += _varint(number << 3 | 2) + _varint(len(body)) + body
    unknown = set(message) - {entry[0] for entry in table.values()} - {"_unknown"}
    if unknown:
        raise KeyError(f"{name} has no field {sorted(unknown)}")
    return bytes(out)


def _default(kind, repeated):
    if repeated:
        return []
    return None if kind in MESSAGES else _DEFAULTS.get(kind, 0)


def fields(data):
    """The raw fields of a message: (number, wire type, value)."""
    at, found = 0, []
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError("field number 0")
        if wire == 0:
            value, at = _read_varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise WireError("a fixed-size field is cut off")
        elif wire == 2:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise WireError("a field is longer than its message")
        else:
            raise WireError(f"wire type {wire}")
        found.append((number, wire, value))
    return found


def _value(name, field, kind, wire, value):
    expected = 0 if kind in _VARINTS else 5 if kind == "float" else 2
    if wire != expected:
        raise WireError(f"{name}.{field} has wire type {wire} instead of {expected}")
    if kind == "float":
        return struct.unpack("<f", value)[0]
    if kind == "bool":
        return bool(value)
    if kind in ("uint32", "enum"):
        if value > 0xFFFFFFFF:
            raise WireError(f"{name}.{field} does not fit into 32 bits")
        return value
    if kind == "string":
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise WireError(f"{name}.{field} is not UTF-8") from error
    if kind in MESSAGES:
        return decode(kind, value)
    return value


def decode(name, data):
    """The dict of `data`, read with the table `name`."""
    table = MESSAGES[name]
    message = {}
    for entry in table.values():
        field, kind, repeated = (*entry, False)[:3]
        message[field] = _default(kind, repeated)
    for number, wire, value in fields(data):
        if number not in table:
            message.setdefault("_unknown", []).append(number)
            continue
        field, kind, repeated = (*table[number], False)[:3]
        if repeated and kind in _VARINTS and wire == 2:
            at = 0
            while at < len(value):
                item, at = _read_varint(value, at)
                message[field].append(item)
            continue
        item = _value(name, field, kind, wire, value)
        if repeated:
            message[field].append(item)
        else:
            message[field] = item
    return message


def envelope(payload, body, **header):
    """The bytes of an envelope with one payload."""
    return encode("Envelope", {**header, payload: body})


def payload_of(message):
    """The name of a decoded envelope's payload; `None` if it has none."""
    present = [name for name in PAYLOADS if message.get(name) is not None]
    if len(present) > 1:
        raise WireError(f"an envelope with {present}")
    return present[0] if present else None


def raw_payload(data):
    """The payload's bytes as they came, for comparing one re-send with another."""
    known = [value for number, _, value in fields(data) if number in PAYLOADS.values()]
    return known[0] if known else b""
