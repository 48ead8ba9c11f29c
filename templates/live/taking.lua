-- What the router writes: snapshots and changes of them, at the start of nginx and while it runs; and workers that begin.


local function put(name, line)
    local ok, why = routes:safe_set(name, line)
    return ok or error(why, 0)
end


local OTHERS = { version = true, writes = true, epoch = true, writing = true, [WHERE] = true }


local function forget_all_but(kept)
    for _, name in ipairs(routes:get_keys(0)) do
        if not kept[name] and not OTHERS[name] then
            routes:delete(name)
        end
    end
end


local function announce()
    routes:incr("writes", 1, 0)
    head.epoch = routes:incr("epoch", 1, 0) % 4294967296
end


-- Takes up lines `route NAME<TAB>LINE` and `gone NAME`; with `only`, what is not among them goes as well.
-- What is new is written first, and what is gone goes when that is known: nobody finds less than he looks for.  And then that
-- is said once more, for who looked in between goes by what is gone now.
local function take(text, to, only)
    local lines, gone = {}, {}
    for line in text:gmatch("[^\n]+") do
        local name, rest = line:match("^route (%S+)\t(.*)$")
        local left = not name and line:match("^gone (%S+)$")
        if name then
            lines[name], gone[name] = rest, nil
        elseif left then
            lines[left], gone[left] = nil, true
        end
    end
    local function write()
        for name, line in pairs(lines) do
            put(name, line)
        end
        announce()
    end
    routes:delete("version") -- where this worker is killed half-way, nobody takes what is there for the one or the other
    if only and not pcall(write) then
        forget_all_but(lines) -- nothing asks for these any more, and they may be what fills the memory
        write()
    elseif not only then
        write()
    end
    if only then
        forget_all_but(lines)
    end
    for name in pairs(gone) do
        routes:delete(name)
    end
    announce()
    put("version", to)
end


local function read(path)
    local file = assert(io.open(path))
    local text = file:read("*a")
    file:close()
    return text
end


-- The changes that came to a snapshot later (endpoints.log), and the version that they come to; what is not whole is left out.
local function later(path, version)
    local ok, text = pcall(read, path)
    local head = "of " .. version .. "\n"
    if not ok or text:sub(1, #head) ~= head then
        return "", version
    end
    local from, at = #head + 1, #head + 1
    while true do
        local begins, ends, to, crc = text:find("end (%S+) (%d+)\n", at)
        if not begins then
            break
        end
        if text:sub(begins - 1, begins - 1) == "\n" then
            if ngx.crc32_long(text:sub(from, ends - #crc - 1)) ~= tonumber(crc) then
                break
            end
            version, from = to, ends + 1
        end
        at = ends + 1
    end
    return text:sub(#head + 1, from - 1), version
end


-- init_by_lua: never raises, for an error here keeps nginx from booting, and `nginx -t` does not see it.
function live.load(path)
    local ok, why = pcall(function()
        local text = read(path)
        local to, body, count = text:match("^version (%S+)\n(.*)end (%d+)\n$")
        local _, lines = (body or ""):gsub("\n", "")
        if not to or lines ~= tonumber(count) then
            error("it is not whole", 0)
        end
        local changes, last = later((path:gsub("[^/]*$", "endpoints.log")), to)
        -- old workers still answer while a reload makes new ones: what is gone is taken away later
        take(body .. changes, last, false)
    end)
    if not ok then
        ngx.log(ngx.ERR, "router: ", path, ": ", tostring(why), ": the routes stay as they are")
    end
end


local function is_alive(pid)
    return C.router_kill(tonumber(pid), 0) == 0 or ffi.errno() ~= 3 -- ESRCH
end


-- init_worker_by_lua: what a worker that ended had under way is over, also where all workers' is summed up
function live.begin()
    math.randomseed(ngx.worker.pid() + ngx.now() * 1000) -- else all workers begin at the same instance
    local mine, dead = tostring(ngx.worker.pid()), {}
    for _, key in ipairs(counts:get_keys(0)) do
        local pid, address = key:match("^[ru] (%d+) (.+)$")
        if pid and dead[pid] == nil then
            -- several workers may begin at once: one of them does it
            dead[pid] = (pid == mine or not is_alive(pid)) and counts:safe_add("x " .. pid, true, 10) or false
        end
        if pid and dead[pid] then
            local number = counts:get(key)
            for _ = 1, number_of(counter_at(number)) do
                C.router_sem_trywait(counter_together(address))
            end
            counts:delete(key)
            counts:lpush("free", number)
        end
    end
end
