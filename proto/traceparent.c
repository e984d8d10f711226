/* The id of a trace, as callers hand it on. */
#include "mn_proto.h"

#include <string.h>

static bool is_hexadecimal(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

enum mn_status mn_traceparent_check(const char *field, const char *text, mn_error *error)
{
    static const char shape[] = "hh-hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh-hhhhhhhhhhhhhhhh-hh";
    _Static_assert(sizeof shape == MN_TRACEPARENT_BYTES, "version, trace, parent, flags");
    static const char zeros[] = "00000000000000000000000000000000-0000000000000000";
    bool right = strlen(text) == sizeof shape - 1;
    for (size_t i = 0; right && shape[i]; i++)
        right = shape[i] == '-' ? text[i] == '-' : is_hexadecimal(text[i]);
    if (right && strncmp(text, "ff", 2) && strncmp(text + 3, zeros, 32) &&
        strncmp(text + 36, zeros + 33, 16))
        return MN_OK;
    return mn_fail(error, MN_INVALID, field, "\"%.64s\" is not VERSION-TRACE-PARENT-FLAGS", text);
}

const char *mn_traceparent_usable(const char *text)
{
    mn_error error;
    return text && !mn_traceparent_check("traceparent", text, &error) ? text : NULL;
}
