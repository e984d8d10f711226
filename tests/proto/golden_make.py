#!/usr/bin/env python3
"""Writes golden_messages.h: every request and reply of mneme.proto with all its fields set, encoded
by Google's Python protobuf, which shares no code with the codec under test.

usage: golden_make.py > golden_messages.h      (needs protoc and python3-protobuf)

Values are a function of the field's number N: integers 1000 + N, flags true, enums their largest
value, floats N + 0.5, strings "nN", bytes sixteen of N, repeated fields two elements.
"""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PROTO = os.path.join(HERE, "..", "..", "proto")


def load():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["protoc", f"--proto_path={PROTO}", f"--python_out={folder}", "mneme.proto"],
                       check=True)
        sys.path.insert(0, folder)
        import mneme_pb2
        return mneme_pb2


def scalar(field):
    if field.type == field.TYPE_BOOL:
        return True
    if field.type == field.TYPE_ENUM:
        return max(value.number for value in field.enum_type.values)
    if field.type == field.TYPE_FLOAT:
        return field.number + 0.5
    if field.type == field.TYPE_STRING:
        return f"n{field.number}"
    if field.type == field.TYPE_BYTES:
        return bytes([field.number] * 16)
    return 1000 + field.number


def fill(message):
    for field in message.DESCRIPTOR.fields:
        if field.name == "payload":
            continue
        repeated = field.label == field.LABEL_REPEATED
        if field.type == field.TYPE_MESSAGE and repeated:
            for _ in range(2):
                fill(getattr(message, field.name).add())
        elif field.type == field.TYPE_MESSAGE:
            fill(getattr(message, field.name))
        elif repeated:
            getattr(message, field.name).extend([scalar(field)] * 2)
        else:
            setattr(message, field.name, scalar(field))
    return message


def array(name, data):
    lines = [", ".join(f"0x{b:02x}" for b in data[i:i + 16]) for i in range(0, len(data), 16)]
    return f"static const uint8_t {name}[] = {{\n    " + ",\n    ".join(lines) + "};\n"


def main():
    module = load()
    print("/* Made by golden_make.py: encoded messages, per verb. */")
    print("#ifndef GOLDEN_MESSAGES_H\n#define GOLDEN_MESSAGES_H\n\n#include <stdint.h>\n")
    rows = []
    for method in module.DESCRIPTOR.services_by_name["Memory"].methods:
        verb = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.name).lower()
        for kind, message in (("request", method.input_type), ("reply", method.output_type)):
            data = fill(getattr(module, message.name)()).SerializeToString(deterministic=True)
            print(array(f"golden_{verb}_{kind}", data))
        rows.append(f"    {{golden_{verb}_request, sizeof golden_{verb}_request, golden_{verb}_reply, "
                    f"sizeof golden_{verb}_reply}},")
    print(array("golden_error_detail", fill(module.ErrorDetail()).SerializeToString()))
    print("/* By verb, in the order of MN_VERB_LIST. */\nstatic const struct {\n"
          "    const uint8_t *request;\n    uint32_t request_bytes;\n"
          "    const uint8_t *reply;\n    uint32_t reply_bytes;\n} golden[] = {")
    print("\n".join(rows))
    print("};\n\n#endif")


if __name__ == "__main__":
    main()
