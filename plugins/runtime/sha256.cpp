#include "sha256.h"

#include <algorithm>
#include <cstring>

namespace ctx::runtime
{

namespace
{

// FIPS 180-4, section 4.2.2.
constexpr uint32_t kCONSTANTS[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152,
    0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138,
    0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70,
    0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5,
    0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa,
    0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t value, int bits) noexcept
{
    return value >> bits | value << (32 - bits);
}

} // namespace

void Sha256::add(void const* bytes, size_t count) noexcept
{
    auto const* next = static_cast<uint8_t const*>(bytes);
    while (count > 0)
    {
        size_t const used = mCount % mBlock.size();
        size_t const taken = std::min(count, mBlock.size() - used);
        std::memcpy(mBlock.data() + used, next, taken);
        mCount += taken;
        next += taken;
        count -= taken;
        if (used + taken == mBlock.size())
        {
            takeBlock(mBlock.data());
        }
    }
}

std::string Sha256::finish()
{
    uint64_t const bits = mCount * 8;
    uint8_t const one = 0x80;
    uint8_t const zero = 0;
    add(&one, 1);
    while (mCount % mBlock.size() != mBlock.size() - sizeof(bits))
    {
        add(&zero, 1);
    }
    uint8_t length[sizeof(bits)];
    for (size_t i = 0; i < sizeof(bits); ++i)
    {
        length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    }
    add(length, sizeof(length));
    std::string digest;
    for (uint32_t const word : mHash)
    {
        for (int shift = 28; shift >= 0; shift -= 4)
        {
            digest.push_back("0123456789abcdef"[word >> shift & 15]);
        }
    }
    return digest;
}

// FIPS 180-4, section 6.2.2.
void Sha256::takeBlock(uint8_t const* block) noexcept
{
    uint32_t w[64];
    for (int i = 0; i < 16; ++i)
    {
        w[i] = static_cast<uint32_t>(block[4 * i]) << 24 | static_cast<uint32_t>(block[4 * i + 1]) << 16
            | static_cast<uint32_t>(block[4 * i + 2]) << 8 | block[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i)
    {
        uint32_t const low = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t const high = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = high + w[i - 7] + low + w[i - 16];
    }
    auto [a, b, c, d, e, f, g, h] = mHash;
    for (int i = 0; i < 64; ++i)
    {
        uint32_t const sumE = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
        uint32_t const first = h + sumE + ((e & f) ^ (~e & g)) + kCONSTANTS[i] + w[i];
        uint32_t const sumA = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
        uint32_t const second = sumA + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + first;
        d = c;
        c = b;
        b = a;
        a = first + second;
    }
    uint32_t const words[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i)
    {
        mHash[i] += words[i];
    }
}

} // namespace ctx::runtime
