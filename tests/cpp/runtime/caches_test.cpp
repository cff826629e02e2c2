// Caches in place: growth keeps what they hold, and a failed one changes nothing. SHA-256 beside it.

#include "caches.h"
#include "check.h"
#include "fake_engine.h"
#include "sha256.h"

namespace ctx::test
{

namespace
{

using runtime::CacheBinding;
using runtime::Caches;
using runtime::CacheTensor;
using runtime::StatusCode;

constexpr int64_t kBATCH = 2;

// Element `index` of a layer's keys; every head's slot has kHEAD_DIM of them.
float& element(CacheBinding const& layer, int64_t head, int64_t slot, int64_t index = 0)
{
    return reinterpret_cast<float*>(layer.key)[(head * layer.slots + slot) * kHEAD_DIM + index];
}

void growthKeepsSlotsAndZeroesNewOnes()
{
    LimitedMemory memory;
    {
        Caches caches{memory, packageOf(manifestJson()).contract, kBATCH};
        CHECK(caches.grow(3).ok() && caches.bytes() == kBATCH * kKV_HEADS * 3 * kHEAD_DIM * 4 * 2 * kLAYERS);
        for (int64_t head = 0; head < kBATCH * kKV_HEADS; ++head)
        {
            CHECK(element(caches.bindings()[1], head, 2) == 0);
            element(caches.bindings()[1], head, 2, 3) = static_cast<float>(head + 1);
        }
        CHECK(caches.grow(7).ok());
        for (int64_t head = 0; head < kBATCH * kKV_HEADS; ++head)
        {
            CHECK(element(caches.bindings()[1], head, 2, 3) == static_cast<float>(head + 1));
            CHECK(element(caches.bindings()[1], head, 3) == 0 && element(caches.bindings()[1], head, 6, 3) == 0);
        }
        CHECK(caches.grow(5).ok() && caches.bindings()[0].slots == 7); // never less
        CHECK(memory.held == 2 * kLAYERS);
    }
    CHECK(memory.held == 0);
}

void aFailedGrowthLeavesAllAsTheyWere()
{
    for (int64_t refused = 0; refused < 2 * kLAYERS; ++refused)
    {
        LimitedMemory memory;
        Caches caches{memory, packageOf(manifestJson()).contract, kBATCH};
        CHECK(caches.grow(3).ok());
        element(caches.bindings()[0], 1, 2) = 5;
        memory.allocationsUntilRefusal = refused;
        CHECK(caches.grow(7).code() == StatusCode::kOUT_OF_MEMORY);
        for (CacheBinding const& layer : caches.bindings())
        {
            CHECK(layer.slots == 3);
        }
        CHECK(element(caches.bindings()[0], 1, 2) == 5);
        CHECK(memory.held == 2 * kLAYERS);
        CHECK(caches.grow(7).ok() && element(caches.bindings()[0], 1, 2) == 5);
    }
}

void ringsHaveTheirSizeFromTheStart()
{
    LimitedMemory memory;
    Caches caches{memory, packageOf(manifestJson(true)).contract, 1};
    CHECK(!caches.grows() && caches.grow(1).ok() && caches.bindings()[0].slots == 15);
}

void rowsAreCopiedAndZeroedAlone()
{
    LimitedMemory memory;
    Caches caches{memory, packageOf(manifestJson()).contract, kBATCH};
    CHECK(caches.grow(4).ok());
    CacheBinding const layer = caches.bindings()[1];
    for (int64_t slot = 0; slot < 4; ++slot)
    {
        element(layer, 1, slot) = static_cast<float>(slot + 1); // row 0
        element(layer, 3, slot) = 9;                            // row 1
    }
    CHECK(caches.copyRow(0, 1, 2).ok());
    CHECK(element(layer, 3, 1) == 2 && element(layer, 3, 2) == 9);
    CHECK(caches.zero(0, 100).ok());
    CHECK(element(layer, 1, 3) == 0 && element(layer, 3, 1) == 2);
}

void sizesBeyondNumbersAreOutOfMemory()
{
    LimitedMemory memory;
    CacheTensor tensor{memory, int64_t{1} << 20, int64_t{1} << 31, int64_t{1} << 30};
    CHECK(tensor.resize(int64_t{1} << 40).code() == StatusCode::kOUT_OF_MEMORY);
    CHECK(memory.held == 0);
}

// Oracle: the examples of FIPS 180-2, appendix B, and of the empty text.
void sha256GivesThePublishedDigests()
{
    auto const digest = [](std::string const& text)
    {
        runtime::Sha256 hash;
        hash.add(text.data(), text.size());
        return hash.finish();
    };
    CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")
        == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    runtime::Sha256 million;
    for (int part = 0; part < 1000; ++part)
    {
        std::string const text(1000, 'a');
        million.add(text.data(), text.size());
    }
    CHECK(million.finish() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

} // namespace

Cases cacheCases()
{
    return {
        {"growth_keeps_slots_and_zeroes_new_ones", growthKeepsSlotsAndZeroesNewOnes},
        {"a_failed_growth_leaves_all_as_they_were", aFailedGrowthLeavesAllAsTheyWere},
        {"rings_have_their_size_from_the_start", ringsHaveTheirSizeFromTheStart},
        {"rows_are_copied_and_zeroed_alone", rowsAreCopiedAndZeroedAlone},
        {"sizes_beyond_numbers_are_out_of_memory", sizesBeyondNumbersAreOutOfMemory},
        {"sha256_gives_the_published_digests", sha256GivesThePublishedDigests},
    };
}

} // namespace ctx::test
