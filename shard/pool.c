/* Blocks of staging memory. Sizes come in classes, eight per doubling, so that what one step gave
 * back serves the next without a visit to the allocator. */
#include "shard_core.h"

static uint32_t class_of(uint64_t bytes, uint64_t *out_bytes)
{
    uint32_t exponent = 6; /* the least block is 8 << 6 = 512 bytes */
    while (bytes > (UINT64_C(15) << exponent))
        exponent++;
    uint64_t eighths = (bytes + (UINT64_C(1) << exponent) - 1) >> exponent;
    if (eighths < 8)
        eighths = 8;
    *out_bytes = eighths << exponent;
    uint32_t class = (exponent - 6) * 8 + (uint32_t)(eighths - 8);
    assert(class < BLOCK_CLASSES);
    return class;
}

uint64_t mn_shard_block_bytes(uint64_t bytes)
{
    uint64_t rounded;
    (void)class_of(bytes, &rounded);
    return rounded;
}

static void evict(struct block_pool *pool, uint64_t needed)
{
    for (uint32_t class = BLOCK_CLASSES; class -- > 0;) {
        uint64_t bytes = (UINT64_C(8) + class % 8) << (class / 8 + 6);
        while (pool->free[class] &&
               pool->used_bytes + pool->cached_bytes + needed > pool->bytes_max) {
            void *block = pool->free[class];
            memcpy(&pool->free[class], block, sizeof(void *));
            pool->cached_bytes -= bytes;
            pool->env->release(pool->env->context, block, bytes);
        }
    }
}

void *mn_shard_block_take(struct block_pool *pool, uint64_t bytes)
{
    uint64_t rounded;
    uint32_t class = class_of(bytes, &rounded);
    void *block = pool->free[class];
    if (block) {
        memcpy(&pool->free[class], block, sizeof(void *));
        pool->cached_bytes -= rounded;
    } else {
        if (pool->cached_bytes)
            evict(pool, rounded);
        block = pool->env->allocate(pool->env->context, rounded);
        if (!block)
            return NULL;
    }
    pool->used_bytes += rounded;
    return block;
}

void mn_shard_block_give(struct block_pool *pool, void *block, uint64_t bytes)
{
    if (!block)
        return;
    uint64_t rounded;
    uint32_t class = class_of(bytes, &rounded);
    memcpy(block, &pool->free[class], sizeof(void *));
    pool->free[class] = block;
    pool->used_bytes -= rounded;
    pool->cached_bytes += rounded;
}

void mn_shard_block_pool_deinit(struct block_pool *pool)
{
    assert(pool->used_bytes == 0);
    pool->bytes_max = 0;
    evict(pool, 0);
}
