-- Which instances a process's requests may go to: lines as the router wrote them, read once by each worker.


local function parse(line)
    local words = {}
    for word in line:gmatch("%S+") do
        words[#words + 1] = word
    end
    local route = {
        line = line, method = words[1], max_fails = tonumber(words[2]), fail_timeout = tonumber(words[3]),
        active = {}, backup = {}, peers = {},
    }
    local share = words[#words]:match("^canary=(%d+)$")
    if share then
        route.share, route.canary = tonumber(share), {}
    end
    for n = 4, share and #words - 1 or #words do
        local host, port, weight, kind = words[n]:match("^(.-)|(%d+)|(%d+)|(%a+)$")
        local address = port == "0" and host or host .. ":" .. port
        local peer = {
            host = host, port = port ~= "0" and tonumber(port) or nil, weight = tonumber(weight), address = address,
            together = counter_together(address), fails = "f " .. address, bad = "b " .. address, current = 0,
        }
        route.peers[#route.peers + 1] = peer
        if kind == "active" or kind == "backup" or kind == "canary" then
            local among = route[kind]
            among[#among + 1] = peer
        end
    end
    if #route.active == 0 then
        route.active, route.backup = route.backup, {}
    end
    -- workers begin at different instances, so that few requests are spread as well as many
    if #route.active > 0 then
        route.active[random(#route.active)].current = 1
    end
    route.most = #route.active + #route.backup + (share and #route.canary or 0)
    route.several = route.most > 1
    route.totals = route.method == "least_conn" or route.method == "random_two"
    route.minds_failures = route.several and route.max_fails > 0
    return route
end


local function leave(route)
    for _, peer in ipairs(route.peers) do
        for _, kind in ipairs({ "r", "u" }) do
            local counter = peer[kind]
            if counter then
                counter.users, peer[kind] = counter.users - 1, nil
                if counter.users == 0 then
                    unused[counter.key] = counter
                end
            end
        end
    end
end


-- Whether what this worker goes by is the newest; where it was not, it is from now on.
local function is_up_to_date()
    local now = head.epoch
    if now == epoch then
        return true
    end
    local written = routes:get("writes") or 0
    if written ~= writes then
        for _, route in pairs(before) do
            if route then
                leave(route)
            end
        end
        before, known = known, {}
        tidy()
    end
    epoch, writes, wary = now, written, true
    return false
end


local function route_of(name)
    local route = known[name]
    if route == nil then
        local line, old = routes:get(name), before[name]
        if old and old.line == line then
            route = old -- and its turn in the rotation
        else
            if old then
                leave(old)
            end
            route = line and parse(line) or false
        end
        known[name], before[name] = route, nil
    end
    return route
end
