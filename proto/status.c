/* Statuses and errors: names, sentences, and how an error is filled. */
#include "mn_proto.h"

#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name, *sentence;
    bool retryable;
} statuses[MN_STATUS_COUNT] = {
#define STATUS_ROW(name, number, retryable, sentence) [number] = {#name, sentence, retryable},
    MN_STATUS_LIST(STATUS_ROW)
#undef STATUS_ROW
};

static bool known(enum mn_status status) { return (unsigned)status < MN_STATUS_COUNT; }

const char *mn_status_name(enum mn_status status)
{
    return known(status) ? statuses[status].name : "UNKNOWN";
}

const char *mn_status_sentence(enum mn_status status)
{
    return known(status) ? statuses[status].sentence : "a status that this version does not know";
}

bool mn_status_retryable(enum mn_status status)
{
    return known(status) && statuses[status].retryable;
}

enum mn_status mn_fail(mn_error *error, enum mn_status status, const char *field,
                       const char *format, ...)
{
    if (!error)
        return status;
    va_list arguments;
    error->status = status;
    (void)snprintf(error->field, sizeof error->field, "%s", field); /* cut when too long */
    va_start(arguments, format);
    (void)vsnprintf(error->message, sizeof error->message, format, arguments); /* cut likewise */
    va_end(arguments);
    return status;
}

static const struct {
    const char *name;
    uint32_t bytes;
} dtypes[] = {
    [MN_F32] = {"f32", 4}, [MN_BF16] = {"bf16", 2}, [MN_I8] = {"i8", 1},
    [MN_U32] = {"u32", 4}, [MN_I64] = {"i64", 8},   [MN_F64] = {"f64", 8},
};

const char *mn_durability_name(enum mn_durability durability)
{
    static const char *const names[] = {"default", "none", "process", "sync"};
    return (unsigned)durability < 4 ? names[durability] : "?";
}

const char *mn_dtype_name(enum mn_dtype dtype)
{
    return (unsigned)dtype <= MN_F64 ? dtypes[dtype].name : "?";
}

uint32_t mn_dtype_bytes(enum mn_dtype dtype)
{
    return (unsigned)dtype <= MN_F64 ? dtypes[dtype].bytes : 0;
}
