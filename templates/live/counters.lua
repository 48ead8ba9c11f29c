-- Routes that change without a reload: which instance answers is chosen here, when nginx is about to connect.
--
-- One program in six files, which a generation has as one (live.lua), in this order; each knows what those before it name:
--
--   counters   the memory in which requests under way are counted
--   routes     what the router wrote, as a worker has read it
--   choosing   which instance is next: the ways of `load-balancing`
--   balancing  a request on its way: given, counted, tried again
--   taking     what the router writes, and what a worker finds at its start
--   admin      the socket on which the router writes
--
--   router_routes  name of a process's upstream -> its line; "version": what the router wrote last; "writes": how often it wrote;
--                  "epoch": counts these, and the times that an instance was found failing; "writing": somebody writes;
--                  "memory SIZE": where the counters lie
--   router_counts  "r PID ADDRESS" which counter has the requests under way, of a worker and an instance, "u PID ADDRESS" which has
--                  its websockets; "counters" how many there are, "free" those that nobody has; "f ADDRESS" failures of late,
--                  "b ADDRESS" left out until it expires, "bad": there is such a one; "x PID" a worker that died, and is being tidied
--
-- A counter is a semaphore (sem_overview(7)) in memory that all processes of this nginx share.  It is posted when a request is
-- given to an instance, and taken down by nginx itself when it frees the request: no Lua runs for that (measured: log_by_lua
-- is a twentieth of what a request costs).  A request without trouble looks into no dictionary.
--
-- A line: METHOD MAX_FAILS FAIL_TIMEOUT HOST|PORT|WEIGHT|KIND... [canary=SHARE], KIND one of active, backup, canary, down; of 10,000
-- clients SHARE get the canaries.
local balancer = require "ngx.balancer"
local bit = require "bit"
local ffi = require "ffi"
local get_request = require("resty.core.base").get_request
local ngx, tonumber, tostring, random, min = ngx, tonumber, tostring, math.random, math.min
local bxor, rshift, log = bit.bxor, bit.rshift, math.log
local C, cast = ffi.C, ffi.cast
local uintptr = ffi.typeof("uintptr_t")
local routes, counts = ngx.shared.router_routes, ngx.shared.router_counts

local live = {}
local known, before = {}, {} -- of this worker: the routes it has read, and those it had read until the write before
local epoch, writes -- when that was
local wary = true -- whether an instance may be left out
local OK = 0
local BUSY = -3 -- NGX_BUSY: nobody to ask, which nginx answers with 502

-- names of our own: another program's declarations of these functions may differ
ffi.cdef [[
typedef struct router_cleanup_s router_cleanup_t;
struct router_cleanup_s { void *handler; void *data; router_cleanup_t *next; };
router_cleanup_t *router_cleanup_add(void *request, size_t size) __asm__("ngx_http_cleanup_add");
void *router_mmap(void *at, size_t size, int protection, int flags, int fd, long offset) __asm__("mmap");
int router_sem_init(void *counter, int is_shared, unsigned value) __asm__("sem_init");
int router_sem_post(void *counter) __asm__("sem_post");
int router_sem_trywait(void *counter) __asm__("sem_trywait");
int router_sem_getvalue(void *counter, int *value) __asm__("sem_getvalue");
int router_kill(int pid, int signal) __asm__("kill");
typedef struct { unsigned epoch; unsigned uncounted; } router_head_t;
]]

-- The memory of the counters: what all look at with each request, the counters of workers, and those of all workers together.
local LINE = 64 -- bytes: a processor shares memory by these, and two workers are not to wait for each other
local OWN, TOGETHER = 1048576, 262144
local SIZE = (1 + OWN + TOGETHER) * LINE -- what is not used takes no room
local WHERE = "memory " .. SIZE -- another release's program may want another size, and a reload brings that one in


-- It lies where it lay before a reload, for the master is still the same: so does the dictionary that says where.
local function memory_of_all()
    local at = routes:get(WHERE)
    if not at then
        local made = C.router_mmap(nil, SIZE, 3, 0x4021, -1, 0) -- to read and write; shared, of no file, without a reserve
        at = tonumber(cast(uintptr, made))
        if at == tonumber(cast(uintptr, -1)) or not routes:safe_set(WHERE, at) then
            error("no memory to count requests in", 0)
        end
    end
    return at
end

local memory = memory_of_all()
assert(C.router_cleanup_add and C.router_sem_trywait) -- an nginx that does not show these takes no live updates: better known now
local head = cast("router_head_t *", memory)
local take_down = cast("void *", C.router_sem_trywait)
local value = ffi.new("int[1]")

local counters = {} -- of this worker: "r PID ADDRESS" -> its counter
local unused = {} -- those that no route names any more, until what they count is over
local addresses = {} -- number of a counter -> the address that it is for


local function number_of(counter)
    C.router_sem_getvalue(counter, value)
    return value[0]
end


local function counter_at(number)
    return cast("void *", memory + number * LINE)
end


-- of all workers; of 262,144 pairs of addresses one has it together, and each other's load
local function counter_together(address)
    return counter_at(1 + OWN + ngx.crc32_long(address) % TOGETHER)
end


-- A counter of this worker alone; nil: there is no room, and from now on nobody believes the counts.
local function counter_of(kind, address)
    local key = kind .. " " .. ngx.worker.pid() .. " " .. address
    local found = counters[key]
    if not found then
        local number = counts:rpop("free")
        if not number then
            counts:safe_add("counters", 0)
            number = counts:incr("counters", 1)
        end
        if not number or number > OWN or not counts:safe_set(key, number) then
            head.uncounted = 1
            return nil
        end
        found = { key = key, number = number, at = counter_at(number), users = 0 }
        C.router_sem_init(found.at, 1, 0)
        counters[key], addresses[number] = found, address
    end
    found.users = found.users + 1
    unused[key] = nil
    return found
end


-- What is not counted in any more goes when it is back at zero: another instance gets it.
local function tidy()
    for key, counter in pairs(unused) do
        if number_of(counter.at) == 0 then
            counts:delete(key)
            counts:lpush("free", counter.number)
            counters[key], unused[key], addresses[counter.number] = nil, nil, nil
        end
    end
end
