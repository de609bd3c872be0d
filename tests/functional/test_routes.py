"""Every route of every served method, in every spelling, and the published table of the API."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2, http_pb2  # type: ignore[import-untyped]

from services.platform.rpc.contract import methods
from tests.functional.conftest import PASSWORD, Person, Web

README = Path(__file__).resolve().parents[2] / "README.md"
VERBS = ("get", "post", "put", "patch", "delete")


def bindings(path: str) -> list[tuple[str, str]]:
    """Returns the (verb, path template) pairs of a method, the canonical one first."""
    rule: http_pb2.HttpRule = methods()[path].descriptor.GetOptions().Extensions[annotations_pb2.http]
    return [
        (verb.upper(), getattr(one, verb))
        for one in (rule, *rule.additional_bindings)
        for verb in VERBS
        if getattr(one, verb)
    ]


@dataclass(frozen=True)
class Recipe:
    """How to call a method; placeholders in path, query and body are keys of `scene_of`."""

    path: str
    body: dict[str, Any] | None = None
    query: str = ""
    user_id: str = "{bob}"
    tweet_id: str = "{tweet}"
    signed_in: bool = True
    admin: bool = False
    status: int = 200
    shows: str = ""
    # A method that takes its fields from the query or from the body has one recipe for each.
    verbs: tuple[str, ...] = tuple(verb.upper() for verb in VERBS)


RECIPES = [
    Recipe("/roost.identity.v1.AuthService/CheckUsernameAvailability", query="?username=nobody", shows="available"),
    Recipe(
        "/roost.identity.v1.AuthService/SignUp",
        body={
            "user_name": "{newcomer}",
            "email": "{newcomer}@example.com",
            "user_credetials": PASSWORD,
            "user_metatData": {"bio": "b"},
        },
        signed_in=False,
        status=201,
        shows="access_token",
    ),
    Recipe(
        "/roost.identity.v1.AuthService/Login",
        body={"user_name": "{alice_name}", "credentails": PASSWORD},
        signed_in=False,
        shows="access_token",
    ),
    Recipe("/roost.identity.v1.AuthService/Logout", body={"refresh_token": "{refresh}"}),
    Recipe("/roost.identity.v1.AuthService/RefreshToken", body={"refresh_token": "{refresh}"}, shows="access_token"),
    Recipe("/roost.identity.v1.AuthService/ListSessions", user_id="me", shows="sessions"),
    Recipe("/roost.identity.v1.AuthService/RevokeSession", user_id="me"),
    Recipe(
        "/roost.identity.v1.AuthService/ChangePassword",
        body={"current_password": PASSWORD, "new_password": "another correct horse"},
    ),
    Recipe("/roost.identity.v1.AuthService/GetSigningKeys", signed_in=False, shows="keys"),
    Recipe("/roost.identity.v1.UserService/GetUser", shows="username"),
    Recipe("/roost.identity.v1.UserService/GetUserByUsername", shows="username"),
    Recipe("/roost.identity.v1.UserService/BatchGetUsers", query="?ids={alice},{bob}", shows="users"),
    Recipe("/roost.identity.v1.UserService/UpdateUser", body={"bio": "new"}, user_id="me", shows="username"),
    Recipe("/roost.identity.v1.UserService/DeleteUser", user_id="me"),
    Recipe("/roost.graph.v1.GraphService/Follow", shows="following"),
    Recipe("/roost.graph.v1.GraphService/Unfollow", shows="following"),
    Recipe("/roost.graph.v1.GraphService/ListFollowers", shows="users"),
    Recipe("/roost.graph.v1.GraphService/ListFollowing", shows="users"),
    Recipe("/roost.graph.v1.GraphService/BatchGetRelationships", query="?ids={bob}", shows="relationships"),
    Recipe("/roost.graph.v1.GraphService/Block", shows="blocking"),
    Recipe("/roost.graph.v1.GraphService/Unblock", shows="blocking"),
    Recipe("/roost.graph.v1.GraphService/ListBlocks", user_id="me", shows="users"),
    Recipe("/roost.graph.v1.GraphService/Mute", shows="muting"),
    Recipe("/roost.graph.v1.GraphService/Unmute", shows="muting"),
    Recipe("/roost.graph.v1.GraphService/ListMutes", user_id="me", shows="users"),
    Recipe("/roost.graph.v1.GraphService/SuggestUsers", shows="users"),
    Recipe("/roost.graph.v1.GraphService/ReclassifyUser", body={"tier": "celebrity"}, admin=True),
    Recipe(
        "/roost.tweet.v1.TweetService/CreateTweet",
        body={"content": "hello", "user_id": "{alice}"},
        status=201,
        shows="id",
    ),
    Recipe("/roost.tweet.v1.TweetService/GetTweet", shows="text"),
    Recipe("/roost.tweet.v1.TweetService/BatchGetTweets", query="?ids={tweet}&ids={bobs_tweet}", shows="tweets"),
    Recipe("/roost.tweet.v1.TweetService/UpdateTweet", body={"content": "changed"}, shows="original_text"),
    Recipe("/roost.tweet.v1.TweetService/ListTweetRevisions", shows="revisions"),
    Recipe("/roost.tweet.v1.TweetService/DeleteTweet"),
    Recipe("/roost.tweet.v1.TweetService/Retweet", tweet_id="{bobs_tweet}", shows="retweeted_tweet"),
    Recipe("/roost.tweet.v1.TweetService/Unretweet", tweet_id="{bobs_tweet}"),
    Recipe("/roost.tweet.v1.TweetService/ListQuotes", signed_in=False, shows="tweets"),
    Recipe("/roost.tweet.v1.TweetService/ListRetweeters", signed_in=False, shows="users"),
    Recipe("/roost.tweet.v1.TweetService/ListRecentTweets", query="?sort=latest&limit=5", shows="tweets"),
    Recipe("/roost.tweet.v1.TweetService/ListUserTweets", query="?page=1&limit=10", shows="tweets"),
    Recipe(
        "/roost.tweet.v1.ReplyService/CreateReply",
        body={"tweet_id": "{bobs_tweet}", "content": "so true", "user_id": "{alice}"},
        tweet_id="{bobs_tweet}",
        status=201,
        shows="reply_to_id",
    ),
    Recipe("/roost.tweet.v1.ReplyService/ListReplies", tweet_id="{bobs_tweet}", signed_in=False, shows="hers too"),
    Recipe("/roost.tweet.v1.ReplyService/UpdateReply", body={"content": "changed"}, shows="original_text"),
    Recipe("/roost.tweet.v1.ReplyService/DeleteReply", tweet_id="{bobs_tweet}"),
    Recipe("/roost.tweet.v1.ReplyService/GetThread", tweet_id="{bobs_tweet}", signed_in=False, shows="depths"),
    Recipe(
        "/roost.engagement.v1.EngagementService/LikeTweet",
        # `POST /like` takes the id from the body alone; if the path has it too, both must be equal.
        body={"tweet_id": "{bobs_tweet}", "user_id": "{alice}"},
        tweet_id="{bobs_tweet}",
        shows="likes",
    ),
    Recipe("/roost.engagement.v1.EngagementService/UnlikeTweet", tweet_id="{bobs_tweet}", shows="likes"),
    Recipe("/roost.engagement.v1.EngagementService/ListLikes", signed_in=False, shows="users"),
    Recipe("/roost.engagement.v1.EngagementService/ListLikedTweets", signed_in=False, shows="tweets"),
    Recipe("/roost.engagement.v1.EngagementService/BookmarkTweet", body={"user_id": "me"}, shows="bookmarked"),
    Recipe("/roost.engagement.v1.EngagementService/UnbookmarkTweet", shows="bookmarked"),
    Recipe("/roost.engagement.v1.EngagementService/ListBookmarks", user_id="me", shows="tweets"),
    Recipe("/roost.timeline.v1.TimelineService/ListHomeTimeline", query="?sort=latest&page=1&limit=10", shows="tweets"),
    Recipe("/roost.timeline.v1.TimelineService/ExplainTimelineEntry", shows="shown"),
    Recipe("/roost.timeline.v1.TimelineService/RebuildHomeTimeline", admin=True, shows="entries"),
    Recipe("/roost.timeline.v1.TimelineService/ListMentions", shows="tweets"),
    Recipe("/roost.timeline.v1.TimelineService/ListTagTimeline", signed_in=False, shows="tweets"),
    Recipe(
        "/roost.search.v1.SearchService/SearchTweets",
        query="?q=hers&keywords=too&tags=python&sort=latest&page=1&limit=10&order=top",
        signed_in=False,
        shows="tweets",
        verbs=("GET",),
    ),
    Recipe(
        "/roost.search.v1.SearchService/SearchTweets",
        body={"query": "", "keywords": ["hers"], "tags": []},
        shows="tweets",
        verbs=("POST",),
    ),
    Recipe("/roost.search.v1.SearchService/Search", query="?query=hers&type=tweets", signed_in=False, shows="users"),
    Recipe("/roost.search.v1.SearchService/SearchUsers", query="?q=ali&page=1", signed_in=False, shows="users"),
    Recipe("/roost.search.v1.SearchService/Suggest", query="?q=al", signed_in=False, shows="tags"),
    Recipe("/roost.search.v1.SearchService/ListTrendingTags", signed_in=False, shows="tags"),
    Recipe("/roost.search.v1.SearchService/ListTrendingTweets", signed_in=False, shows="tweets"),
    Recipe("/roost.search.v1.SearchService/Reindex", body={}, admin=True, shows="started"),
    Recipe("/roost.search.v1.SearchService/GetReindex", admin=True, shows="index"),
    Recipe("/roost.registry.v1.RegistryService/ListInstances", admin=True, shows="instances"),
    Recipe("/roost.fanout.v1.FanoutService/GetFanoutStatus", admin=True, shows="state"),
    Recipe("/roost.fanout.v1.FanoutService/GetFanoutLag", admin=True, shows="events"),
    Recipe("/roost.fanout.v1.FanoutService/PauseFanout", admin=True),
    Recipe("/roost.fanout.v1.FanoutService/ResumeFanout", admin=True),
    Recipe("/roost.fanout.v1.FanoutService/ReplayFanout", body={"offset": 0}, admin=True, shows="events"),
]


def spellings_of(recipe: Recipe) -> list[Any]:
    """Returns parameters of a test. On the cluster backend the first spelling shows that the method works, and the
    gateway maps the others to it before any store is asked; they run only with `--all` there."""
    first, *others = [
        (f"{verb} {template}", verb, template) for verb, template in bindings(recipe.path) if verb in recipe.verbs
    ]
    named = [(first, ()), *[(other, pytest.mark.long("cluster")) for other in others]]
    return [pytest.param(recipe, verb, template, id=name, marks=marks) for (name, verb, template), marks in named]


SPELLINGS = [spelling for recipe in RECIPES for spelling in spellings_of(recipe)]


async def scene_of(web: Web) -> dict[str, Any]:
    alice, bob, admin = await web.sign_up("alice"), await web.sign_up("bob"), await web.admin()
    tweet, bobs_tweet = await web.post(alice, "hers"), await web.post(bob, "his")
    answer = await web.call("POST", f"/v1/tweets/{bobs_tweet}/replies", alice, json={"text": "hers too"})
    await web.mesh.settled()
    people = {"alice": alice, "bob": bob, "admin": admin, "alice_name": alice.username, "username": bob.username}
    return people | {
        "newcomer": web.fresh("carol"),
        "tweet": tweet,
        "bobs_tweet": bobs_tweet,
        "reply_id": answer.json()["id"],
    }


def filled(text: str, scene: dict[str, Any]) -> str:
    names = {key: value.id if isinstance(value, Person) else value for key, value in scene.items()}
    return re.sub(r"\{(\w+)\}", lambda found: names[found.group(1)], text)


@pytest.mark.parametrize(("recipe", "verb", "template"), SPELLINGS)
async def test_route_every_spelling_is_served(web: Web, recipe: Recipe, verb: str, template: str) -> None:
    if web.mesh.siblings and "/fanout" in template:
        pytest.skip("a process pauses its own fan-out, and knows the progress of its own fan-outs")
    scene = await scene_of(web)
    alice = scene["alice"]
    scene["refresh"] = alice.refresh_token
    scene |= {
        "user_id": filled(recipe.user_id, scene),
        "tweet_id": filled(recipe.tweet_id, scene),
        "tag": "python",
    }
    sessions = (await web.call("GET", "/v1/users/me/sessions", alice)).json()["sessions"]
    scene["session_id"] = sessions[0]["id"]
    path = filled(template + recipe.query, scene)
    body = None
    if recipe.body is not None:
        body = {key: filled(value, scene) if isinstance(value, str) else value for key, value in recipe.body.items()}
    person = scene["admin"] if recipe.admin else alice if recipe.signed_in else None
    answer = await web.call(verb, path, person, **({} if body is None else {"json": body}))
    assert answer.status_code == recipe.status, answer.text
    assert recipe.shows in answer.text
    assert answer.headers["content-type"].startswith("application/json")
    if recipe.path.endswith("PauseFanout"):
        # Other tests share the mesh.
        assert (await web.call("POST", "/admin/v1/fanout/resume", person)).status_code == 200


async def test_recipes_cover_every_served_method(web: Web) -> None:
    """Every served method with routes is in RECIPES."""
    tried = {recipe.path for recipe in RECIPES}
    for service in web.mesh.process.services.values():
        for name, servicer in service.servicers.items():
            for method in methods().values():
                if method.service == name and method.name in vars(type(servicer)) and bindings(method.path):
                    assert method.path in tried, f"{method.path} is served, and no recipe tries its routes"


async def test_readme_lists_methods_answered_501(web: Web) -> None:
    served = {
        (name, attribute)
        for service in web.mesh.process.services.values()
        for name, servicer in service.servicers.items()
        for kind in type(servicer).__mro__
        if not kind.__module__.endswith("_pb2_grpc")
        for attribute in vars(kind)
    }
    # The runtime serves the envelope of batched calls itself.
    served.add(("roost.batch.v1.BatchService", "Call"))
    unserved = [m for m in methods().values() if (m.service, m.name) not in served]
    assert [m.path for m in methods().values() if m.policy.unserved] == [m.path for m in unserved]
    listed = re.search(r"answered with 501.*?:(.*?)\n- ", README.read_text(), re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+\.\w+)`", listed[1])) == {f"{m.service.rpartition('.')[2]}.{m.name}" for m in unserved}
    answer = await web.call("POST", "/v1/auth/request-password-reset", json={"email": "ada@example.org"})
    assert answer.status_code == 501, answer.text
    for path in ("/v1/notifications", "/v1/media", "/v1/reports"):
        assert (await web.call("GET", path)).status_code == 404, path


# Services whose packages were renamed since the table was published: the registry has one name at every layer.
RENAMED = {
    "roost.mesh.v1.AdminService": "roost.registry.v1.AdminService",
    "roost.mesh.v1.BatchService": "roost.batch.v1.BatchService",
    "roost.mesh.v1.RegistryService": "roost.registry.v1.RegistryService",
}


def test_contract_matches_published_api_table(shared: Path) -> None:
    """Every RPC of the published table is in the contract, with the same kind and the same routes in order."""
    text = (shared / "api.md").read_text()
    by_name = {(m.service, m.name): m for m in methods().values()}
    packages = {m.service for m in methods().values()}
    service = ""
    compared = 0
    for line in text.splitlines():
        if heading := re.match(r"\*\*(roost\.\w+\.v1\.\w+)\*\*", line):
            service = RENAMED.get(heading.group(1), heading.group(1))
        row = re.match(r"\| (\w+) \| (U|S|C|I|IS) \| (.+?) \| (.*?) \| ", line)
        if row is None or service not in packages:
            continue
        name, kind, canonical, others = row.groups()
        method = by_name[service, name]
        assert ("S" in kind) == method.server_streaming, name
        wanted = re.findall(r"`(\w+) ([^`?]+)[^`]*`", f"{canonical} {others}")
        assert bindings(method.path) == [(verb, route) for verb, route in wanted], name
        compared += 1
    assert compared > 100


def test_routes_every_spelling_is_bound_once() -> None:
    every = [(verb, re.sub(r"\{\w+\}", "{}", template)) for path in methods() for verb, template in bindings(path)]
    repeated = [key for key, group in itertools.groupby(sorted(every)) if len(list(group)) > 1]
    assert repeated == []
