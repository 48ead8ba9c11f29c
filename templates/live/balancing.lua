-- balancer_by_lua: give a request to an instance, count it, and try another where that one fails.


local function failed(route, peer)
    if not route.minds_failures then
        return
    end
    counts:safe_add(peer.fails, 0, route.fail_timeout)
    local fails = counts:incr(peer.fails, 1)
    if fails and fails >= route.max_fails then
        counts:safe_set(peer.bad, true, route.fail_timeout)
        if (counts:ttl("bad") or 0) < route.fail_timeout then
            counts:safe_set("bad", true, route.fail_timeout)
        end
        counts:delete(peer.fails)
        -- so that the workers look who it is, and look for none as long as there is none
        head.epoch = routes:incr("epoch", 1, 0) % 4294967296
    end
end


local function failed_at(route, address)
    for _, peer in ipairs(route and route.peers or {}) do
        if peer.address == address then
            return failed(route, peer)
        end
    end
end


-- Which counter a request is counted in stands where nginx reads it as it frees the request, in its list of what is to be done then:
--
--   take_down, counter     of an instance; one that was tried in vain has no take_down any more
--   take_down, counter     of all workers, where the way of choosing asks for it
--   nothing, request       whose they are: a subrequest (auth_request, mirror) has no such list, its main request's ends it
local function note(entry, counter)
    entry.handler, entry.data = take_down, counter
    C.router_sem_post(counter)
end


local function take_back(entry)
    if entry.handler == take_down then
        entry.handler = nil
        C.router_sem_trywait(entry.data)
        return true
    end
    return false
end


-- It was tried and let go: it failed, or what it answered led to another one (X-Accel-Redirect, error_page).  `entry` is what the
-- list begins with; what comes back is why, and the addresses that were tried.
local function put_back(request, entry, name)
    local why, tried, group = nil, nil, {}
    while entry ~= nil do
        local number = (tonumber(cast(uintptr, entry.data)) - memory) / LINE
        if number > 0 and number < SIZE / LINE then
            group[#group + 1] = entry
        elseif group[1] then
            if entry.data == request then
                why = why or balancer.get_last_failure()
                tried = why and (tried or {})
                for _, each in ipairs(group) do
                    local address = addresses[(tonumber(cast(uintptr, each.data)) - memory) / LINE]
                    if take_back(each) and why == "failed" and address then
                        failed_at(route_of(name), address) -- and not "next": an answer that proxy_next_upstream sends on, such as http_404
                    end
                    if not why then
                        each.data = nil
                    elseif address then
                        tried[address] = true
                    end
                end
            end
            group = {}
        end
        entry = entry.next
    end
    return why, tried
end


-- Whether it was given to an instance; nil: the routes changed meanwhile.
local function give(request, entry, name, kind, tried, again)
    local route = route_of(name)
    local peer = route and choose(route, tried)
    if not peer then
        return is_up_to_date() and BUSY or nil
    end
    local counter = peer[kind]
    if not counter then
        counter = counter_of(kind, peer.address)
        peer[kind] = counter
    end
    if counter then
        note(entry, counter.at)
    end
    -- counted first, then looked again: whoever wrote before it saw the count at zero is heeded here
    if not is_up_to_date() then
        take_back(entry)
        return nil
    end
    if route.totals then
        local too = C.router_cleanup_add(request, 0)
        if too ~= nil then
            note(too, peer.together)
        end
    end
    if route.most > 1 and not again then
        balancer.set_more_tries(min(route.most - 1, 100))
    end
    local ok, why = balancer.set_current_peer(peer.host, peer.port)
    if not ok then
        ngx.log(ngx.ERR, "router: ", name, ": ", peer.address, ": ", why)
        return BUSY
    end
    return OK
end


-- balancer_by_lua; without trouble it goes through no loop and makes no table, so that LuaJIT compiles it as a whole.
function live.balance()
    local request, name = cast("void *", get_request()), ngx.var.router_process
    -- a websocket may last for days, and who drains may not want to wait for it
    local kind = ngx.var.router_upgrade == "" and "r" or "u"
    local whose = C.router_cleanup_add(request, 0)
    local entry = C.router_cleanup_add(request, 0)
    if whose == nil or entry == nil then
        return ngx.exit(BUSY) -- no memory
    end
    whose.data = request
    local again, tried
    local others = whose.next -- nginx's own: a request begins with that one
    if others ~= nil and others.next ~= nil then
        again, tried = put_back(request, others, name)
    end
    local given = give(request, entry, name, kind, tried, again)
    if given == nil then
        for _ = 1, 100 do
            given = given or give(request, entry, name, kind, tried, again)
        end
    end
    if given ~= OK then
        return ngx.exit(BUSY)
    end
end


-- log_by_lua of where nginx answers itself, because no instance did: the last that was tried has failed as well.
function live.done()
    if ngx.status < 502 then
        return
    end
    local status = ngx.var.upstream_status or ""
    if (status:match("502$") or status:match("504$")) and (ngx.var.upstream_bytes_received or ""):match("(%d+)$") == "0" then
        failed_at(route_of(ngx.var.router_process), ngx.var.upstream_addr:match("([^, ]+)$"))
    end
end
