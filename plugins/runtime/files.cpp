#include "files.h"

#include "boundary.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sys/stat.h>
#include <vector>

namespace ctx::runtime
{

namespace
{

constexpr size_t kPART = 1 << 20;

struct Closer
{
    void operator()(std::FILE* file) const
    {
        std::fclose(file);
    }
};

[[noreturn]] void failToRead(std::string const& path, std::string const& reason)
{
    throw Failure{StatusCode::kINVALID_PACKAGE, path + " cannot be read: " + reason + "; export the package again"};
}

} // namespace

FileKind fileKind(std::string const& path)
{
    struct stat info{};
    if (::stat(path.c_str(), &info) != 0)
    {
        return errno == ENOENT || errno == ENOTDIR ? FileKind::kNONE : FileKind::kOTHER;
    }
    return S_ISREG(info.st_mode) ? FileKind::kREGULAR : FileKind::kOTHER;
}

int64_t fileBytes(std::string const& path)
{
    struct stat info{};
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? static_cast<int64_t>(info.st_size) : 0;
}

std::string pathIn(std::string const& directory, std::string const& name)
{
    return directory.empty() || directory.back() == '/' ? directory + name : directory + "/" + name;
}

bool isPlainName(std::string const& name)
{
    return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos;
}

void readParts(std::string const& path, std::function<void(char const*, size_t)> const& take)
{
    if (fileKind(path) != FileKind::kREGULAR) // a pipe would be waited for
    {
        failToRead(path, fileKind(path) == FileKind::kNONE ? "it does not exist" : "it is no regular file");
    }
    std::unique_ptr<std::FILE, Closer> const file{std::fopen(path.c_str(), "rb")};
    if (file == nullptr)
    {
        failToRead(path, std::strerror(errno));
    }
    std::vector<char> part(kPART);
    while (size_t const count = std::fread(part.data(), 1, part.size(), file.get()))
    {
        take(part.data(), count);
    }
    if (std::ferror(file.get()) != 0)
    {
        failToRead(path, std::strerror(errno));
    }
}

std::string fileContents(std::string const& path, int64_t most)
{
    std::string contents;
    readParts(path,
        [&](char const* bytes, size_t count)
        {
            if (static_cast<int64_t>(contents.size() + count) > most)
            {
                failToRead(path, "it has more than " + std::to_string(most) + " bytes");
            }
            contents.append(bytes, count);
        });
    return contents;
}

} // namespace ctx::runtime
