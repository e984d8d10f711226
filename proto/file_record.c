/* The fields of records of files: little-endian, of the widths that mn_proto.h names. */
#include "mn_proto.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "files hold rows as they lie in memory: little-endian machines only"
#endif

static uint8_t *put(uint8_t *at, const void *value, size_t bytes)
{
    memcpy(at, value, bytes);
    return at + bytes;
}

static const uint8_t *get(const uint8_t *at, void *out_value, size_t bytes)
{
    memcpy(out_value, at, bytes);
    return at + bytes;
}

uint8_t *mn_file_put_U32(uint8_t *at, const mn_file_U32 *value) { return put(at, value, 4); }

uint8_t *mn_file_put_U64(uint8_t *at, const mn_file_U64 *value) { return put(at, value, 8); }

uint8_t *mn_file_put_F32(uint8_t *at, const mn_file_F32 *value) { return put(at, value, 4); }

uint8_t *mn_file_put_NAME(uint8_t *at, const mn_file_NAME *value)
{
    memset(at, 0, MN_NAME_BYTES);
    memcpy(at, *value, strnlen(*value, MN_NAME_BYTES - 1));
    return at + MN_NAME_BYTES;
}

uint8_t *mn_file_put_SPEC(uint8_t *at, const mn_file_SPEC *value)
{
    const mn_optimizer *optimizer = &value->optimizer;
    const uint32_t shape[] = {value->dim, value->dtype, value->split, value->tiles};
    const uint32_t init_kind = value->init.kind, optimizer_kind = optimizer->kind;
    const uint32_t state[] = {optimizer->state_dtype, optimizer->row_correction};
    const float init[] = {value->init.a, value->init.b};
    const float constants[] = {optimizer->beta1, optimizer->beta2, optimizer->eps};
    at = mn_file_put_NAME(at, &value->name);
    at = put(at, &value->rows, 8);
    at = put(at, shape, sizeof shape);
    at = put(at, &value->seed, 8);
    at = put(at, &init_kind, 4);
    at = put(at, init, sizeof init);
    at = put(at, &optimizer_kind, 4);
    at = put(at, constants, sizeof constants);
    return put(at, state, sizeof state);
}

uint8_t *mn_file_put_PREAMBLE(uint8_t *at, const mn_file_PREAMBLE *value)
{
    at = put(at, &value->magic, 8);
    at = put(at, &value->format_version, 4);
    at = put(at, &value->least_reader, 4);
    return put(at, &value->endianness, 4);
}

const uint8_t *mn_file_get_U32(const uint8_t *at, mn_file_U32 *out_value)
{
    return get(at, out_value, 4);
}

const uint8_t *mn_file_get_U64(const uint8_t *at, mn_file_U64 *out_value)
{
    return get(at, out_value, 8);
}

const uint8_t *mn_file_get_F32(const uint8_t *at, mn_file_F32 *out_value)
{
    return get(at, out_value, 4);
}

const uint8_t *mn_file_get_NAME(const uint8_t *at, mn_file_NAME *out_value)
{
    at = get(at, *out_value, MN_NAME_BYTES);
    (*out_value)[MN_NAME_BYTES - 1] = '\0';
    return at;
}

const uint8_t *mn_file_get_SPEC(const uint8_t *at, mn_file_SPEC *out_value)
{
    uint32_t shape[4], init_kind, optimizer_kind, state[2];
    float init[2], constants[3];
    at = mn_file_get_NAME(at, &out_value->name);
    at = get(at, &out_value->rows, 8);
    at = get(at, shape, sizeof shape);
    at = get(at, &out_value->seed, 8);
    at = get(at, &init_kind, 4);
    at = get(at, init, sizeof init);
    at = get(at, &optimizer_kind, 4);
    at = get(at, constants, sizeof constants);
    at = get(at, state, sizeof state);
    out_value->dim = shape[0];
    out_value->dtype = (enum mn_dtype)shape[1];
    out_value->split = (enum mn_split)shape[2];
    out_value->tiles = shape[3];
    out_value->init = (mn_init){(enum mn_init_kind)init_kind, init[0], init[1]};
    out_value->optimizer = (mn_optimizer){.kind = (enum mn_optimizer_kind)optimizer_kind,
                                          .beta1 = constants[0],
                                          .beta2 = constants[1],
                                          .eps = constants[2],
                                          .state_dtype = (enum mn_dtype)state[0],
                                          .row_correction = state[1] != 0};
    return at;
}

const uint8_t *mn_file_get_PREAMBLE(const uint8_t *at, mn_file_PREAMBLE *out_value)
{
    at = get(at, &out_value->magic, 8);
    at = get(at, &out_value->format_version, 4);
    at = get(at, &out_value->least_reader, 4);
    return get(at, &out_value->endianness, 4);
}
