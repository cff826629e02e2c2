// The keys that a tile of queries reads, as one list of tiles of keys: the sinks, the far blocks of its list, the near
// ones, and the tokens after them. Each of the four parts begins with a tile of its own; queries are turned once for
// the first two and once for the others.
#pragma once

#include "kernels/landmark_attention/landmark_attention_place.cuh"

namespace ctx
{

constexpr int kKEY_PARTS = 4;
constexpr int kSINK_PART = 0;
constexpr int kFAR_PART = 1;
constexpr int kNEAR_PART = 2;
constexpr int kTAIL_PART = 3;

// A row of a tile.
struct KeyReader
{
    int32_t position; // -1: it does not attend
    int32_t far;      // where it meets the sinks and far blocks
    int32_t tail;     // its first token after the blocks
};

// A key as a tile's rows meet it.
struct KeyPlace
{
    uint32_t slot;
    int32_t position;
    uint32_t rows;  // that see it, as bits
    uint32_t entry; // of the tile's list, where the key is a block's
};

struct KeyList
{
    ChosenBlock const* blocks;
    float const* biases; // of the tile's list; null: none
    uint32_t keys[kKEY_PARTS];
    uint32_t tileEnd[kKEY_PARTS]; // with the tiles of the parts before
    uint32_t farBlocks;
    int32_t tailBegin;
    int32_t commonTail; // first token after the blocks of all rows
    int32_t first;      // position among the rows'
    uint32_t attending; // rows, as bits

    CTX_DEVICE int partOf(uint32_t tile) const
    {
        int part = 0;
        while (part < kTAIL_PART && tile >= tileEnd[part])
        {
            ++part;
        }
        return part;
    }

    CTX_DEVICE uint32_t firstKey(int part, uint32_t tile, uint32_t tileKeys) const
    {
        return (tile - (part == 0 ? 0 : tileEnd[part - 1])) * tileKeys;
    }

    // Tiles that are met by the queries as they meet the sinks.
    CTX_DEVICE uint32_t farTiles() const
    {
        return tileEnd[kFAR_PART];
    }

    CTX_DEVICE uint32_t tiles() const
    {
        return tileEnd[kTAIL_PART];
    }

    // A part's key; past its end one that no row sees.
    CTX_DEVICE KeyPlace keyOf(LandmarkLayout const& layout, KeyReader const* rows, int part, uint32_t key) const
    {
        if (key >= keys[part])
        {
            return KeyPlace{0, 0, 0, 0};
        }
        if (part == kFAR_PART || part == kNEAR_PART)
        {
            uint32_t const entry = key / layout.block + (part == kFAR_PART ? 0 : farBlocks);
            uint32_t const offset = key % layout.block;
            ChosenBlock const chosen = blocks[entry];
            bool const isLandmark = layout.isLandmark && offset == layout.block - 1;
            uint32_t const token = layout.tokenOf(part == kFAR_PART ? 0 : chosen.number, offset);
            return KeyPlace{
                layout.slotOf(chosen.number, offset), static_cast<int32_t>(token), isLandmark ? 0 : chosen.rows, entry};
        }
        auto const token = static_cast<int32_t>(part == kSINK_PART ? key : tailBegin + key);
        return KeyPlace{layout.slotOf(static_cast<uint32_t>(token)), token, readersOf(layout, rows, part, token), 0};
    }

private:
    // Rows that see a sink or a token after the blocks. A landmark there is that of the query's own block.
    CTX_DEVICE uint32_t readersOf(LandmarkLayout const& layout, KeyReader const* rows, int part, int32_t token) const
    {
        bool const isTail = part == kTAIL_PART;
        if (isTail && layout.isLandmark
            && (static_cast<uint32_t>(token) - layout.sinks) % layout.block == layout.block - 1)
        {
            return 0;
        }
        if (token <= first && (!isTail || token >= commonTail))
        {
            return attending;
        }
        uint32_t readers = 0;
        for (uint32_t r = 0; r < kLANDMARK_ROWS; ++r)
        {
            bool const sees = token <= rows[r].position && (!isTail || token >= rows[r].tail);
            readers |= sees ? 1U << r : 0U;
        }
        return readers;
    }
};

// What a block of threads knows of its call, kept in shared memory.
struct LandmarkBlock
{
    LandmarkTile tile;
    uint32_t split;
    Sequence sequence;
    KeyReader row[kLANDMARK_ROWS];
    KeyList keys;
    uint32_t begin; // of its tiles of keys
    uint32_t end;
    LogitScale scale;
    bool isNegative; // the logits' scale

    CTX_DEVICE bool isAttending(int row) const
    {
        return (keys.attending >> row & 1U) != 0;
    }

    // Offset of a row in q or y.
    CTX_DEVICE int64_t rowOffset(CtxStrides const& strides, int row) const
    {
        return tile.place.rowOffset(strides, tile.place.firstRow + row);
    }

    // To which a row's query is turned.
    CTX_DEVICE int64_t queryPosition(int row, bool isFar) const
    {
        return isFar ? this->row[row].far : this->row[row].position;
    }
};

CTX_DEVICE void placeReader(LandmarkBlock& block, LandmarkCall const& call, uint32_t row)
{
    LandmarkQuery const query = block.tile.queryOf(call, block.sequence, row);
    block.row[row] = KeyReader{query.position, query.farPosition(call.layout), static_cast<int32_t>(query.tail)};
}

CTX_DEVICE void placeKeys(LandmarkBlock& block, LandmarkCall const& call, GridPlan const& grid, uint32_t tileKeys)
{
    KeyList& keys = block.keys;
    ListSize const size = block.tile.listSize(call);
    keys.blocks = call.entries + block.tile.firstEntry(call);
    keys.biases = call.layout.isLandmark ? call.biases + block.tile.firstEntry(call) * kLANDMARK_ROWS : nullptr;
    keys.farBlocks = size.far;
    keys.attending = 0;
    keys.first = INT32_MAX;
    keys.tailBegin = INT32_MAX;
    keys.commonTail = 0;
    int32_t last = -1;
    for (uint32_t r = 0; r < kLANDMARK_ROWS; ++r)
    {
        KeyReader const& row = block.row[r];
        if (row.position >= 0)
        {
            keys.attending |= 1U << r;
            keys.first = row.position < keys.first ? row.position : keys.first;
            keys.tailBegin = row.tail < keys.tailBegin ? row.tail : keys.tailBegin;
            keys.commonTail = row.tail > keys.commonTail ? row.tail : keys.commonTail;
            last = row.position > last ? row.position : last;
        }
    }
    auto const end = static_cast<uint32_t>(last + 1);
    keys.keys[kSINK_PART] = call.layout.sinks < end ? call.layout.sinks : end;
    keys.keys[kFAR_PART] = size.far * call.layout.block;
    keys.keys[kNEAR_PART] = size.near * call.layout.block;
    keys.keys[kTAIL_PART] = last >= keys.tailBegin ? end - static_cast<uint32_t>(keys.tailBegin) : 0;
    uint32_t tiles = 0;
    for (int part = 0; part < kKEY_PARTS; ++part)
    {
        tiles += (keys.keys[part] + tileKeys - 1) / tileKeys;
        keys.tileEnd[part] = tiles;
    }
    uint32_t const share = (tiles + grid.splits - 1) / grid.splits;
    block.begin = static_cast<uint32_t>(smaller(static_cast<int64_t>(block.split) * share, tiles));
    block.end = static_cast<uint32_t>(smaller(static_cast<int64_t>(block.begin) + share, tiles));
}

// A split's part of the list, entries [begin, turn) far and [turn, end) near ones.
struct EntryShare
{
    uint32_t begin;
    uint32_t turn;
    uint32_t end;

    CTX_DEVICE static EntryShare of(LandmarkBlock const& block, LandmarkCall const& call, GridPlan const& grid)
    {
        ListSize const size = block.tile.listSize(call);
        uint32_t const all = size.far + size.near;
        uint32_t const share = (all + grid.splits - 1) / grid.splits;
        auto const begin = static_cast<uint32_t>(smaller(static_cast<int64_t>(block.split) * share, all));
        auto const end = static_cast<uint32_t>(smaller(static_cast<int64_t>(begin) + share, all));
        return EntryShare{begin, size.far < end ? size.far : end, end};
    }
};

// By all threads of the block, a barrier included.
CTX_DEVICE void startBlock(LandmarkBlock& block, LandmarkCall const& call, GridPlan const& grid, uint32_t tileKeys)
{
    if (threadIdx.x == 0)
    {
        block.tile = LandmarkTile::of(call, grid, blockIdx.x, block.split);
        block.sequence = sequenceOf(call.common, block.tile.place.batch);
        block.isNegative = call.common.scale < 0.0F;
        block.scale = LogitScale::of(fabsf(call.common.scale), call.common.softcap, 1.0F);
    }
    __syncthreads();
    if (threadIdx.x < kLANDMARK_ROWS)
    {
        placeReader(block, call, threadIdx.x);
    }
    __syncthreads();
    if (threadIdx.x == 0)
    {
        placeKeys(block, call, grid, tileKeys);
    }
    __syncthreads();
}

} // namespace ctx
