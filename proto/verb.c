/* Verbs: their names on the wire and the budgets they draw on. */
#include "mn_proto.h"

static const struct {
    const char *name;
    enum mn_verb_kind kind;
} verbs[MN_VERB_COUNT] = {
#define VERB_ROW(name, wire, kind) [MN_VERB_##name] = {wire, MN_KIND_##kind},
    MN_VERB_LIST(VERB_ROW)
#undef VERB_ROW
};

const char *mn_verb_name(enum mn_verb verb)
{
    return (unsigned)verb < MN_VERB_COUNT ? verbs[verb].name : "?";
}

enum mn_verb_kind mn_verb_kind_of(enum mn_verb verb)
{
    return (unsigned)verb < MN_VERB_COUNT ? verbs[verb].kind : MN_KIND_CONTROL;
}
