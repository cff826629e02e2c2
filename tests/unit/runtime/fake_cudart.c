// A CUDA runtime over host memory: checks every range against what was
// allocated, and the stream. NO_DRIVER: creating the stream fails as it does on
// a machine without a driver.
#include <stdlib.h>
#include <string.h>

enum
{
    kSUCCESS = 0,
    kINVALID_VALUE = 1,
    kMEMORY_ALLOCATION = 2,
    kINSUFFICIENT_DRIVER = 35,
    kMOST_ALLOCATIONS = 64
};

static struct
{
    char* address;
    size_t size;
} allocations[kMOST_ALLOCATIONS];
static struct
{
    void* target;
    void const* source;
    size_t size;
} download; // comes when it is waited for
static int lastError = kSUCCESS;
static char stream;

static int status(int error)
{
    if (error != kSUCCESS)
    {
        lastError = error;
    }
    return error;
}

static int isDevice(void const* address, size_t size)
{
    char const* first = address;
    for (int i = 0; i < kMOST_ALLOCATIONS; ++i)
    {
        char const* start = allocations[i].address;
        if (start != NULL && start <= first && first + size <= start + allocations[i].size)
        {
            return 1;
        }
    }
    return 0;
}

// Whether `rows` rows may be on the device, or must not, as the kind of a copy
// says.
static int isPlace(void const* first, size_t pitch, size_t width, size_t height, int onDevice)
{
    return width <= pitch && isDevice(first, (height - 1) * pitch + width) == onDevice;
}

char const* cudaGetErrorString(int error)
{
    return error == kINSUFFICIENT_DRIVER ? "CUDA driver version is insufficient for CUDA runtime version"
                                         : "invalid argument";
}

int cudaGetLastError(void)
{
    int const error = lastError;
    lastError = kSUCCESS;
    return error;
}

int cudaStreamCreate(void** created)
{
#ifdef NO_DRIVER
    return status(kINSUFFICIENT_DRIVER);
#else
    *created = &stream;
    return kSUCCESS;
#endif
}

int cudaStreamSynchronize(void* given)
{
    if (download.size > 0)
    {
        memcpy(download.target, download.source, download.size);
        download.size = 0;
    }
    return status(given == &stream ? kSUCCESS : kINVALID_VALUE);
}

int cudaStreamDestroy(void* given)
{
    return status(given == &stream ? kSUCCESS : kINVALID_VALUE);
}

int cudaMalloc(void** address, size_t size)
{
    for (int i = 0; i < kMOST_ALLOCATIONS && size < (size_t) 1 << 40; ++i)
    {
        if (allocations[i].address == NULL)
        {
            allocations[i].address = *address = malloc(size);
            allocations[i].size = size;
            memset(*address, 0xFF, size);
            return kSUCCESS;
        }
    }
    return status(kMEMORY_ALLOCATION);
}

int cudaFree(void* address)
{
    for (int i = 0; i < kMOST_ALLOCATIONS; ++i)
    {
        if (address != NULL && allocations[i].address == address)
        {
            free(address);
            allocations[i].address = NULL;
            return kSUCCESS;
        }
    }
    return status(kINVALID_VALUE);
}

int cudaMemset2DAsync(void* target, size_t pitch, int value, size_t width, size_t height, void* given)
{
    if (given != &stream || !isPlace(target, pitch, width, height, 1))
    {
        return status(kINVALID_VALUE);
    }
    for (size_t row = 0; row < height; ++row)
    {
        memset((char*) target + row * pitch, value, width);
    }
    return kSUCCESS;
}

int cudaMemsetAsync(void* target, int value, size_t size, void* given)
{
    return cudaMemset2DAsync(target, size, value, size, 1, given);
}

// Kinds: 1 host to device, 2 device to host, 3 device to device.
int cudaMemcpy2DAsync(void* target, size_t targetPitch, void const* source, size_t sourcePitch, size_t width,
    size_t height, int kind, void* given)
{
    if (given != &stream || !isPlace(target, targetPitch, width, height, kind != 2)
        || !isPlace(source, sourcePitch, width, height, kind != 1))
    {
        return status(kINVALID_VALUE);
    }
    for (size_t row = 0; row < height; ++row)
    {
        memcpy((char*) target + row * targetPitch, (char const*) source + row * sourcePitch, width);
    }
    return kSUCCESS;
}

int cudaMemcpyAsync(void* target, void const* source, size_t size, int kind, void* given)
{
    if (kind != 2)
    {
        return cudaMemcpy2DAsync(target, size, source, size, size, 1, kind, given);
    }
    if (given != &stream || isDevice(target, size) || !isDevice(source, size))
    {
        return status(kINVALID_VALUE);
    }
    download.target = target;
    download.source = source;
    download.size = size;
    return kSUCCESS;
}
